"""Compares answers with those that `generate` gives for each request alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Agreement:
    num_compared: int
    num_identical: int
    tokens_agreeing: float | None  # share of tokens before the first that differs


def agreement(alone: Mapping[int, list[int]], answers: Mapping[int, list[int]]) -> Agreement:
    both = sorted(alone.keys() & answers.keys())
    same = [num_same(alone[number], answers[number]) for number in both]
    num_tokens = sum(len(alone[number]) for number in both)
    return Agreement(
        num_compared=len(both),
        num_identical=sum(alone[number] == answers[number] for number in both),
        tokens_agreeing=sum(same) / num_tokens if num_tokens else None,
    )


def num_same(one: list[int], other: list[int]) -> int:
    """Count the tokens before the first difference; later tokens cannot be compared."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
