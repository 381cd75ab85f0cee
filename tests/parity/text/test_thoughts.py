"""Thought and answer in a real tokenizer's tokens: stops, special tokens, marks of answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken

from engine.core.completion import Completion, GeneratedTokens
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.output import Choice
from engine.protocol.request import ChatTurn, Request
from engine.protocol.sampling_params import SamplingParams
from engine.text.processor import TextProcessor


@pytest.fixture(scope="module")
def folder(folder_of) -> Any:
    return folder_of("qwen2")


def processor_of(folder: Any, template: str, *special: str) -> TextProcessor:
    """special: tokens that the vocabulary marks as special, and names nowhere"""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(each, special=True, normalized=False) for each in special])
    tokenizer.chat_template = template
    config = transformers.AutoConfig.from_pretrained(folder)
    checkpoint = SimpleNamespace(
        tokenizer=tokenizer,
        config=config,
        generation_config=transformers.GenerationConfig(),
        own={},
        num_ids=len(tokenizer),
        limits=SimpleNamespace(max_prompt_tokens=500, max_answer_context_tokens=500),
        eos_token_ids=frozenset([tokenizer.eos_token_id]),
    )
    spec = EngineSpec(alias="tiny", checkpoint=str(folder))
    return TextProcessor(spec, checkpoint, None)  # type: ignore[arg-type]  # what it reads of one


def choice_of(processor: TextProcessor, answer: str, *stops: str, **kind: Any) -> Choice:
    """The choice of an answer that ended where the last of its tokens did."""
    params = SamplingParams(max_new_tokens=200, do_sample=False, stop=stops)
    kind = kind or {"task": "chat", "messages": (ChatTurn("user", "2+2?"),)}
    sequence = processor.encode(Request(id=1, params=params, **kind))
    ids = processor.checkpoint.tokenizer(answer, add_special_tokens=False)["input_ids"]
    completion = Completion(sequence, (GeneratedTokens(tuple(ids), "stop"),))
    return processor.decode(completion).choices[0]


def said(choice: Choice) -> tuple[str | None, str]:
    return choice.reasoning, choice.text


PLAIN = "{{ messages[0]['content'] }}"
HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>")


def test_channels_are_none_of_the_text(folder) -> None:
    text = processor_of(folder, PLAIN + "{# <|channel|>analysis<|message|> #}", *HARMONY)
    final = "<|channel|>final<|message|>four"
    thought = "<|channel|>analysis<|message|>hm"
    assert said(choice_of(text, final)) == (None, "four")
    assert said(choice_of(text, f"{thought}<|end|><|start|>assistant{final}")) == ("hm", "four")
    cut = choice_of(text, thought)
    assert (cut.reasoning, cut.text, cut.reasoning_tokens) == ("hm", "", cut.completion_tokens)


def test_an_empty_thought_of_gemma_is_none_of_the_answer(folder) -> None:
    template = PLAIN + "{% if think %}<|think|>{% endif %}{# <|channel>thought #}"
    text = processor_of(folder, template, "<|channel>", "<channel|>", "<|think|>")
    assert said(choice_of(text, "<|channel>thought\n<channel|>four")) == ("", "four")
    assert said(choice_of(text, "<|channel>thought\nhm\n<channel|>four")) == ("hm", "four")
    assert said(choice_of(text, "<|channel>thought\nhm, and")) == ("hm, and", "")
    assert said(choice_of(text, "four")) == (None, "four")


THINKING = PLAIN + "<think>\n"


@pytest.mark.parametrize(
    ("answer", "stop", "expected"),
    [
        ("hm\nEND", "END", ("hm", "")),
        ("hm</think>four END", "END", ("hm", "four")),
        # It begins in the thought and ends in the answer.
        ("hm</think>four", "</think>four", ("hm", "")),
        ("hm</think>", "</think>", ("hm", "")),
    ],
)
def test_a_stop_string_ends_the_thought_or_answer_that_contains_it(
    folder, answer, stop, expected
) -> None:
    assert said(choice_of(processor_of(folder, THINKING), answer, stop)) == expected


def test_marks_around_an_answer_are_the_templates(folder) -> None:
    template = PLAIN + "{# thoughts between <think></think>, response between <response> #}"
    text = processor_of(folder, template)
    answer = "<think>hm</think>\n<response>four</response>"
    assert said(choice_of(text, answer)) == ("hm", "four")
    assert said(choice_of(text, "<response>four</response>")) == (None, "four")
    written = choice_of(text, "<response>four</response>", task="generate", text="2+2?")
    assert said(written) == (None, "<response>four</response>"), "no template wrote the prompt"
    assert said(choice_of(processor_of(folder, THINKING), f"hm</think>{answer[17:]}")) == (
        "hm",
        "<response>four</response>",
    ), "the user's own"
