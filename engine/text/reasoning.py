"""Reasoning: a model's thought, kept apart from its answer by the marks that it writes.

A thought is at the beginning: after an opening mark that the prompt ends with or the answer
begins with, or, where the mark is the checkpoint's own, after none. It ends with the closing
mark; without one, the model was cut while it thought and has not answered.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from engine.text.detokenizer import text_of

Marks = tuple[str, str]  # opening, closing
THINK: Marks = ("<think>", "</think>")  # looked for whatever the checkpoint says of itself
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
    # gpt-oss names a channel for each part.
    (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
)
TAIL_TOKENS = 24  # of a prompt, in which its last mark is


@dataclass(frozen=True, slots=True)
class Thought:
    text: str
    num_tokens: int  # of the answer's tokens, the closing mark included
    rest: str  # what the last of these tokens says beyond the mark


def own_marks(tokenizer: Any) -> tuple[Marks, ...]:
    """The marks that a checkpoint's chat template or vocabulary names."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    vocabulary = tokenizer.get_vocab()
    return tuple(
        marks
        for marks in KNOWN_MARKS
        if marks[1] in vocabulary or any(mark.strip() in template for mark in marks)
    )


class ThoughtSplitter:
    """Finds the thought in answers to prompts that a chat template wrote."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.own = own_marks(tokenizer)

    def thought(
        self, prompt_ids: Iterable[int], answer_ids: list[int], is_rendered: bool = True
    ) -> Thought | None:
        """The thought before an answer; None where there is none.

        is_rendered: a chat template wrote the prompt; of others only what is opened by a mark of
                     the checkpoint's own is a thought
        """
        if not is_rendered and not self.own:
            return None
        if not self.own and not text_of(self.tokenizer, answer_ids).lstrip().startswith(THINK[0]):
            return None
        prompt = self._raw(list(prompt_ids)[-TAIL_TOKENS:]).rstrip() if self.own else ""
        answer = self._raw(answer_ids)
        for marks in self.own or (THINK,):
            may_be_left_out = is_rendered and bool(self.own)
            if begins_with_thought(prompt, answer, marks, may_be_left_out):
                return self._split(answer_ids, answer, *marks)
        return None

    def mark_to_come(self, prompt_ids: Iterable[int]) -> str | None:
        """The mark that ends the thought which a prompt begins; None if it begins none."""
        prompt = self._raw(list(prompt_ids)[-TAIL_TOKENS:]).rstrip() if self.own else ""
        return next((closing for opening, closing in self.own if prompt.endswith(opening)), None)

    def _split(self, answer_ids: list[int], answer: str, opening: str, closing: str) -> Thought:
        if closing not in answer:
            return Thought(
                without_mark(text_of(self.tokenizer, answer_ids), opening), len(answer_ids), ""
            )
        num = 1 + bisect_left(
            range(1, len(answer_ids)),
            True,
            key=lambda length: closing in self._raw(answer_ids[:length]),
        )
        thought, _, rest = self._raw(answer_ids[:num]).partition(closing)
        while rest.endswith("\ufffd") and num < len(answer_ids):  # half a character
            num += 1
            rest = self._raw(answer_ids[:num]).partition(closing)[2]
        return Thought(without_mark(thought, opening), num, rest)

    def _raw(self, token_ids: list[int]) -> str:
        return text_of(self.tokenizer, token_ids, skip_special_tokens=False)


def begins_with_thought(prompt: str, answer: str, marks: Marks, may_be_left_out: bool) -> bool:
    """prompt: its end; answer: with the special tokens in it; may_be_left_out: the opening mark"""
    opening, closing = marks
    if answer.lstrip().startswith(opening) or prompt.endswith(opening):
        return True
    # Some leave the opening mark to the reader's imagination.
    return may_be_left_out and closing in answer and opening not in answer


def without_mark(thought: str, opening: str) -> str:
    return thought.strip().removeprefix(opening).strip()
