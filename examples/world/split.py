"""Splits texts into those for training and held-out ones."""

import zlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Protocol, TypeVar

HELD_OUT_ONE_IN = 5


class Text(Protocol):
    @property
    def key(self) -> str:
        """The words that decide whether the text is held out."""


T = TypeVar("T", bound=Text)


def is_held_out(text: Text) -> bool:
    """Whether the text is held out; its words alone decide, whatever the seed and the count."""
    return zlib.crc32(text.key.encode()) % HELD_OUT_ONE_IN == 0


def for_training(make: Callable[[Random], T], seed: int) -> Iterator[T]:
    """Yield training texts without end, some of them repeatedly; none is held out."""
    return (text for text in _all(make, seed) if not is_held_out(text))


def held_out(make: Callable[[Random], T], seed: int) -> Iterator[T]:
    """Yield held-out texts without end, some of them repeatedly; training never sees one."""
    return (text for text in _all(make, seed) if is_held_out(text))


def _all(make: Callable[[Random], T], seed: int) -> Iterator[T]:
    draw = Random(seed)
    while True:
        yield make(draw)
