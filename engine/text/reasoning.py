"""Reasoning: separates a model's thought from its answer by the marks that it generates.

A thought comes first: after an opening mark at the end of the prompt or the start of the answer,
or, if the checkpoint has a mark of its own, without an opening mark. It ends with the closing mark;
without one the model was cut off while it thought, and there is no answer.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from engine.text.detokenizer import special_ids, text_of

Marks = tuple[str, str]  # opening, closing
THINK: Marks = ("<think>", "</think>")  # searched for in any checkpoint's answers
# gpt-oss names a channel for each part.
CHANNELS: Marks = (
    "<|channel|>analysis<|message|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
)
KNOWN_MARKS: tuple[Marks, ...] = (
    THINK,
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<thought>", "</thought>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
    ("Here is my thought process:", "Here is my response:"),
    ("Here's my thought process:", "Here's my response:"),
    CHANNELS,
)
# Marks that some models put around the answer after a thought.
ANSWER_MARKS: tuple[Marks, ...] = (
    ("<response>", "</response>"),
    ("<answer>", "</answer>"),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
)
# The names that the field of a thought has in a tokenizer's response template.
THOUGHT_FIELDS = ("reasoning_content", "thinking", "reasoning")
CHANNEL = "<|channel|>"
# A header may say what format follows: `final <|constrain|>json<|message|>`.
FINAL_CHANNEL = re.compile(r"<\|channel\|>final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
HEADER = re.compile(
    r"(?:<\|end\|>)?(?:<\|start\|>[^<]*)?<\|channel\|>[^<]*(?:<\|constrain\|>[^<]*)?"
    r"(?:<\|message\|>|$)|<\|end\|>(?:<\|start\|>[^<]*)?$"
)
LEAST_OF_MARK = 3  # characters that identify a truncated mark
TAIL_TOKENS = 24  # of a prompt, in which its last mark is


@dataclass(frozen=True, slots=True)
class Thought:
    """The thought before an answer."""

    text: str | None  # None: nothing was thought, and what comes before is a header
    num_tokens: int  # of the answer's tokens, the closing mark included
    rest: str  # the text of the last of these tokens after the mark


def own_marks(tokenizer: Any) -> tuple[Marks, ...]:
    """The marks that a checkpoint's tokenizer, chat template or vocabulary contains."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    vocabulary = tokenizer.get_vocab()
    known = tuple(
        marks
        for marks in KNOWN_MARKS
        if marks[1] in vocabulary or any(mark.strip() in template for mark in marks)
    )
    openings = [opening for opening, _ in known]
    return known + tuple(
        marks
        for marks in marks_of_response_template(tokenizer)
        if not any(marks[0].startswith(each) for each in openings)
    )


def marks_of_response_template(tokenizer: Any) -> tuple[Marks, ...]:
    """The marks in a tokenizer's `response_template`, by which transformers parses answers."""
    template = getattr(tokenizer, "response_template", None)
    fields = template.get("fields") if isinstance(template, dict) else None
    if not isinstance(fields, dict):
        return ()
    named = (fields.get(name) for name in THOUGHT_FIELDS)
    return tuple(
        (opening.strip(), closing.strip())
        for field in named
        if isinstance(field, dict)
        for opening in texts_of(field.get("open"))
        for closing in texts_of(field.get("close"))
        if opening.strip() and closing.strip()
    )


def texts_of(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]


class ThoughtSplitter:
    """Splits answers into thought and answer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.own = own_marks(tokenizer)
        self.special_ids = special_ids(tokenizer)
        template = str(getattr(tokenizer, "chat_template", None) or "")
        self.own_answer_marks = tuple(each for each in ANSWER_MARKS if each[0] in template)

    def thought(
        self, prompt_ids: Iterable[int], answer_ids: list[int], is_rendered: bool = True
    ) -> Thought | None:
        """The thought before an answer; None if there is none.

        is_rendered: whether a chat template rendered the prompt; otherwise only the checkpoint's
                     own opening mark begins a thought
        """
        if not is_rendered and not self.own:
            return None
        if not self.own and not text_of(self.tokenizer, answer_ids).lstrip().startswith(THINK[0]):
            return None
        prompt = self._end_of(prompt_ids)
        answer = self._raw(answer_ids)
        opened = (*self.own, THINK) if is_rendered else self.own
        for marks in opened:
            if opens_thought(prompt, answer, marks[0]):
                return self._split(answer_ids, answer, marks)
        if CHANNELS in self.own and answer.lstrip().startswith(CHANNEL):
            return self._split(answer_ids, answer, CHANNELS)
        for opening, closing in self.own if is_rendered else ():
            # Some models leave out the opening mark.
            is_over = prompt.endswith(closing) and not answer.lstrip().startswith(closing)
            if closing in answer and opening not in answer and not is_over:
                return self._split(answer_ids, answer, (opening, closing))
        return None

    def mark_to_come(self, prompt_ids: Iterable[int]) -> str | None:
        """The mark that ends a thought which the prompt begins; None if it begins none."""
        prompt = self._end_of(prompt_ids)
        return next((closing for opening, closing in self.own if prompt.endswith(opening)), None)

    def unwrapped(self, answer: str) -> str:
        """Remove the marks that the chat template puts around an answer."""
        for opening, closing in self.own_answer_marks:
            inner = answer.lstrip()
            if inner.startswith(opening):
                return inner.removeprefix(opening).rstrip().removesuffix(closing)
        return answer

    def _end_of(self, prompt_ids: Iterable[int]) -> str:
        return self._raw(list(prompt_ids)[-TAIL_TOKENS:]).rstrip() if self.own else ""

    def _split(self, answer_ids: list[int], answer: str, marks: Marks) -> Thought:
        opening, closing = marks
        ending = FINAL_CHANNEL if marks == CHANNELS else re.compile(re.escape(closing))
        if not ending.search(answer):
            return Thought(self._clean(answer, answer_ids, opening), len(answer_ids), "")
        num = 1 + bisect_left(
            range(1, len(answer_ids)),
            True,
            key=lambda length: ending.search(self._raw(answer_ids[:length])) is not None,
        )
        thought, rest = parted(self._raw(answer_ids[:num]), ending)
        while rest.endswith("\ufffd") and num < len(answer_ids):  # half a character
            num += 1
            rest = parted(self._raw(answer_ids[:num]), ending)[1]
        return Thought(self._clean(thought, answer_ids[:num], opening), num, rest)

    def _clean(self, thought: str, token_ids: list[int], opening: str) -> str | None:
        """The text of a thought without marks and special tokens; None if it is only a header."""
        thought = thought.strip()
        if opening.startswith(thought):
            thought = ""  # cut within the mark
        if opening == CHANNELS[0]:
            parts = (each.strip() for each in HEADER.split(thought))
            thought = "\n".join(filter(None, parts))
            if not thought:
                return None
        thought = thought.removeprefix(opening)
        for special in self.special_ids.intersection(token_ids):
            thought = thought.replace(self._raw([special]), "")
        return thought.strip()

    def _raw(self, token_ids: list[int]) -> str:
        return text_of(self.tokenizer, token_ids, skip_special_tokens=False)


def opens_thought(prompt: str, answer: str, opening: str) -> bool:
    """Whether an answer begins with a thought.

    prompt:  the end of the prompt
    answer:  with special tokens
    opening: the opening mark
    """
    begin = answer.strip()
    if begin.startswith(opening) or prompt.endswith(opening):
        return True
    is_cut_within = len(begin) >= LEAST_OF_MARK and opening.startswith(begin)
    return is_cut_within and not begin[0].isalnum()


def parted(answer: str, ending: re.Pattern[str]) -> tuple[str, str]:
    """The texts before and after the mark that ends a thought."""
    found = ending.search(answer)
    assert found is not None
    return answer[: found.start()], answer[found.end() :]
