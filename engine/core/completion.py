"""Completion: how one sequence ended, still in token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from engine.core.sequence import Sequence
from engine.errors import RequestError
from engine.protocol.output import FinishReason


@dataclass(frozen=True, slots=True)
class GeneratedTokens:
    """The new tokens of one returned row, with the end token, and the finish reason."""

    token_ids: tuple[int, ...]
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a sequence: `num_return_sequences` answers, one cancelled answer, or an error."""

    sequence: Sequence
    answers: tuple[GeneratedTokens, ...] = ()
    error: RequestError | None = None

    @classmethod
    def cancelled(cls, sequence: Sequence) -> Self:
        return cls(sequence, (GeneratedTokens((), "cancelled"),))

    @classmethod
    def failed(cls, sequence: Sequence, error: RequestError) -> Self:
        return cls(sequence, error=error)

    @property
    def num_tokens(self) -> int:
        return sum(len(each.token_ids) for each in self.answers)
