"""EncodedPrompts: shares an encoder's output among running sequences with equal prompts.

One document may be submitted with several seeds, settings or languages, and parts of documents can
be equal; the encoder runs once for all that run at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet, WeakValueDictionary

from engine.errors import InvariantBroken

Content = TypeVar("Content")


class Encoded(Generic[Content]):
    """An encoder's output that several caches read; the last holder to leave frees it."""

    def __init__(self, content: Content, free: Callable[[Content], None]) -> None:
        self.content = content
        self.free = free
        # Weak references: a failed step may leave caches that are never cleared.
        self.holders: WeakSet[object] = WeakSet()

    def hold(self, cache: object) -> Encoded[Content]:
        self.holders.add(cache)
        return self

    def release(self, cache: object) -> None:
        self.holders.discard(cache)
        if not self.holders:
            self.free(self.content)


class EncodedPrompts(Generic[Content]):
    """The encoded prompts of running sequences, by their token ids."""

    def __init__(self) -> None:
        self.by_prompt: WeakValueDictionary[tuple[int, ...], Encoded[Content]] = (
            WeakValueDictionary()
        )

    def find(self, prompt_ids: tuple[int, ...]) -> Encoded[Content] | None:
        encoded = self.by_prompt.get(prompt_ids)
        return encoded if encoded is not None and encoded.holders else None

    def add(self, prompt_ids: tuple[int, ...], encoded: Encoded[Content]) -> None:
        self.by_prompt[prompt_ids] = encoded


class Holder(Protocol):
    encoded: Encoded[Any] | None


def check_holders(caches: Iterable[Holder]) -> list[Encoded[Any]]:
    """List the outputs that the caches hold, each once.

    Raises InvariantBroken if a cache reads one that it does not hold.
    """
    held: dict[int, Encoded[Any]] = {}
    for each in caches:
        if each.encoded is None:
            continue
        if each not in each.encoded.holders:
            raise InvariantBroken(
                f"a sequence reads an encoder's output that {len(each.encoded.holders)} others hold"
            )
        held[id(each.encoded)] = each.encoded
    return list(held.values())
