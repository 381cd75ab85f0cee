"""Which texts are for training and which are held out."""

import zlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Protocol, TypeVar

HELD_OUT_ONE_IN = 5


class Text(Protocol):
    @property
    def key(self) -> str:
        """The words that decide on which side of the split the text falls."""


T = TypeVar("T", bound=Text)


def is_held_out(text: Text) -> bool:
    """Decided by the words alone, so no seed and no count can let a text cross over."""
    return zlib.crc32(text.key.encode()) % HELD_OUT_ONE_IN == 0


def for_training(make: Callable[[Random], T], seed: int) -> Iterator[T]:
    """Texts without end, some of them more than once; none is held out."""
    return (text for text in _all(make, seed) if not is_held_out(text))


def held_out(make: Callable[[Random], T], seed: int) -> Iterator[T]:
    """Texts without end, some of them more than once; training never sees one."""
    return (text for text in _all(make, seed) if is_held_out(text))


def _all(make: Callable[[Random], T], seed: int) -> Iterator[T]:
    draw = Random(seed)
    while True:
        yield make(draw)
