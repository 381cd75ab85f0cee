"""Prompts of a checkpoint's folder, and requests that are written by them."""

from __future__ import annotations

import transformers

from engine.errors import RequestError
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.request import ChatTurn, Request
from engine.text.prompts import Prompts

TEXT = "the keeper of the mill counted three boats at night"


def prompts_of(folder, max_tokens=None, **settings_) -> Prompts:
    spec = EngineSpec(alias="tiny", checkpoint=str(folder), **settings_)
    config = transformers.AutoConfig.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    start_id = getattr(config, "decoder_start_token_id", None)
    return Prompts(spec, config, tokenizer, start_id, max_tokens)


def encoded(prompts: Prompts, request: Request) -> object:
    try:
        return prompts.encode(request)
    except RequestError as error:
        return error.code


def translation(target: str, source: str = "en") -> Request:
    return Request(
        id=0, task="translate", text=TEXT, source_language=source, target_language=target
    )


def chat_of(prompts: Prompts, *messages: ChatTurn) -> str:
    return prompts.write(Request(id=0, task="chat", messages=messages)).text


def translation_of(source: str, target: str, text: str = "the mill", **more) -> Request:
    return Request(
        id=0, task="translate", text=text, source_language=source, target_language=target, **more
    )
