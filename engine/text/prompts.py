"""Prompts: the text of a task in token ids, as each family of models wants it.

A template of the spec comes first; it may name {text} and, by their English names,
{source_language} and {target_language}. Otherwise:

encoder-decoder  T5 is told what to do in words; Marian, M2M100, NLLB and mBART are told
                 the languages in tokens; the others get the text and know their task
decoder-only     through the chat template if there is one; else as a text to go on from
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import (
    EmptyPrompt,
    NoChatTemplate,
    UnknownLanguage,
    UnsupportedParameter,
)
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.messages import Request
from engine.text.characters import sanitize
from engine.text.languages import Languages, closest, is_language

NLLB_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")

CONTINUATIONS = {
    "summarize": "{text}\n\nTL;DR:",
    "translate": (
        "Translate from {source_language} to {target_language}.\n\n"
        "{source_language}: {text}\n{target_language}:"
    ),
}
INSTRUCTIONS = {
    "summarize": "Summarize the following text in a few sentences.\n\n{text}",
    "translate": (
        "Translate the following text from {source_language} to {target_language}. "
        "Answer with the translation only.\n\n{text}"
    ),
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and what a translator must be told beside them."""

    token_ids: tuple[int, ...]
    forced_bos_token_id: int | None = None
    decoder_start_token_id: int | None = None


class Prompts:
    """Encodes requests for one checkpoint. One thread: a tokenizer holds a source language."""

    def __init__(self, spec: EngineSpec, config: Any, tokenizer: Any, start_id: int | None) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        self.is_encoder_decoder: bool = config.is_encoder_decoder
        self.model_type: str = config.model_type
        self.task_params: Mapping[str, Any] = getattr(config, "task_specific_params", None) or {}
        self.language_ids = language_ids(tokenizer)  # token ids by the checkpoint's own codes
        self.start_id = start_id
        marian = tuple(getattr(tokenizer, "supported_language_codes", None) or ())
        self.languages = Languages(marian or self.language_ids, spec.languages)
        self.is_multi_target = bool(marian)
        # What becomes of no text, by the source language that the tokenizer holds.
        self.of_no_text: dict[str | None, tuple[int, ...]] = {}

    def encode(self, request: Request) -> Prompt:
        """Raises RequestError."""
        if request.task == "chat":
            return self._chat([(each.role, sanitize(each.content)) for each in request.messages])
        text = sanitize(request.text or "")
        if not text.strip():
            raise EmptyPrompt()
        if request.task == "generate":
            return self._tokens(text)
        template = self.spec.prompt.get(request.task)
        if self.is_encoder_decoder:
            return self._seq2seq(request, text, template)
        return self._causal(request, text, template)

    def _seq2seq(self, request: Request, text: str, template: str | None) -> Prompt:
        if template is None and self.model_type == "t5":
            template = self._t5_template(request)
        prompt = text if template is None else self._filled(template, request, text)
        if request.task != "translate":
            return self._tokens(prompt)
        if self.is_multi_target:
            code = self.languages.own_code("target_language", request.target_language)
            self._check_pair_end("source_language", request.source_language)
            return self._tokens(f"{code} {prompt}")
        if self.language_ids:
            return self._between_languages(request, prompt)
        for name in ("source_language", "target_language"):
            self._check_pair_end(name, getattr(request, name))
        return self._tokens(prompt)

    def _causal(self, request: Request, text: str, template: str | None) -> Prompt:
        has_chat = bool(getattr(self.tokenizer, "chat_template", None))
        default = (INSTRUCTIONS if has_chat else CONTINUATIONS)[request.task]
        filled = self._filled(template or default, request, text)
        return self._chat([("user", filled)]) if has_chat else self._tokens(filled)

    def _t5_template(self, request: Request) -> str:
        """`summarize: {text}`, in the checkpoint's own words if it has some."""
        if request.task == "summarize":
            prefix = self.task_params.get("summarization", {}).get("prefix", "summarize: ")
        else:
            prefix = "translate {source_language} to {target_language}: "
        return str(prefix) + "{text}"

    def _filled(self, template: str, request: Request, text: str) -> str:
        values = {"text": text}
        for name in ("source_language", "target_language"):
            if f"{{{name}" in template:
                values[name] = self.languages.english_name(name, getattr(request, name))
        return template.format_map(values)

    def _between_languages(self, request: Request, prompt: str) -> Prompt:
        """M2M100, NLLB, mBART: the source goes into the prompt, the target starts the answer."""
        source = self.languages.own_code("source_language", request.source_language)
        target = self.languages.own_code("target_language", request.target_language)
        self.tokenizer.src_lang = source
        token_ids = self._tokens(prompt).token_ids
        target_id = self.language_ids[target]
        # The first mBART starts its decoder with the language; the others force it as the
        # first token after another start.
        if self.start_id in self.language_ids.values():
            return Prompt(token_ids, decoder_start_token_id=target_id)
        return Prompt(token_ids, forced_bos_token_id=target_id)

    def _check_pair_end(self, name: str, language: str | None) -> None:
        """A language that a model for one pair cannot have meant. What the checkpoint does
        not say (or says as a group, as in `gmw`) is taken on trust."""
        if language is None:
            return
        allowed = self.spec.languages
        if allowed and closest(language, tuple(allowed)) is None:
            raise UnknownLanguage(name, language, allowed)
        own = getattr(self.tokenizer, name.removesuffix("uage"), None)  # Marian's `source_lang`
        if own and is_language(own) and closest(language, (own,)) is None:
            raise UnknownLanguage(name, language, (own,))

    def _chat(self, messages: list[tuple[str, str]]) -> Prompt:
        if self.is_encoder_decoder or not getattr(self.tokenizer, "chat_template", None):
            raise NoChatTemplate(self.spec.alias)
        if not any(content.strip() for _, content in messages):
            raise EmptyPrompt("every message is empty")
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            encoded = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=True
            )
        except Exception as error:
            # Templates are programs of the checkpoint and refuse by raising what they like.
            reason = "the chat template of the model refuses these roles in this order"
            raise UnsupportedParameter("messages", reason) from error
        return Prompt(tuple(encoded["input_ids"]))

    def _tokens(self, text: str) -> Prompt:
        token_ids = tuple(self.tokenizer(text)["input_ids"])
        source = getattr(self.tokenizer, "src_lang", None)
        if source not in self.of_no_text:
            self.of_no_text[source] = tuple(self.tokenizer("")["input_ids"])
        if not token_ids or token_ids == self.of_no_text[source]:
            raise EmptyPrompt("the text holds nothing that the tokenizer keeps")
        return Prompt(token_ids)


def language_ids(tokenizer: Any) -> dict[str, int]:
    """Token ids by language code, for tokenizers that mark a text with its language."""
    unknown = tokenizer.unk_token_id
    by_code = getattr(tokenizer, "lang_code_to_id", None)
    if by_code is None and hasattr(tokenizer, "src_lang"):
        codes = [each for each in tokenizer.all_special_tokens if NLLB_CODE.fullmatch(each)]
        by_code = {each: tokenizer.convert_tokens_to_ids(each) for each in codes}
    return {code: id_ for code, id_ in (by_code or {}).items() if id_ != unknown}
