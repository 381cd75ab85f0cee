"""PrefixCache: caches the keys and values of prompt blocks for other prompts with the same prefix.

A block is identified by a hash of its tokens and all tokens before it. It is kept once it occurs in
a second prompt, since most prompts share nothing, and evicted when room is needed, least recently
used first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Generic, TypeVar

from engine.errors import InvariantBroken

CACHE_SHARE = 0.5  # of the cache, if running sequences leave that much free
MAX_SIGHTINGS = 2**16  # of blocks whose hashes are remembered

Place = TypeVar("Place")


@dataclass(frozen=True, slots=True)
class PromptBlocks:
    """The blocks of a prompt.

    Not all of a prompt comes from the cache: its last token is computed for its logits.
    """

    cache: PrefixCache[Any]
    num_tokens: int  # of the prompt
    hashes: tuple[bytes, ...]  # of each whole block

    @property
    def num_found_tokens(self) -> int:
        """The number of leading tokens that are in the cache."""
        return len(self.cache.found(self)) * self.cache.block_tokens

    @property
    def usable(self) -> tuple[bytes, ...]:
        """The hashes of the blocks that may be taken from the cache."""
        return self.hashes[: max(self.num_tokens - 1, 0) // self.cache.block_tokens]

    def hashes_of(self, start: int, end: int) -> tuple[bytes, ...]:
        """The hashes of the blocks that become complete when the tokens [start, end) are read."""
        size = self.cache.block_tokens
        return self.hashes[start // size : end // size]


@dataclass(slots=True)
class KeptBlock(Generic[Place]):
    place: Place  # its page, or its keys and values
    num_users: int = 0  # sequences that read it in its place
    is_whole: bool = True  # False: a layer dropped it, so that no other sequence may use it


class PrefixCache(Generic[Place]):
    """Keeps blocks of prompts. Always: at most `max_blocks`, and no block in use is evicted."""

    def __init__(
        self, block_tokens: int, max_blocks: int, free: Callable[[Place], None] = lambda place: None
    ) -> None:
        """free: called with the place of each evicted block"""
        self.block_tokens = block_tokens
        self.max_blocks = self.room = max_blocks
        self.free = free
        self.kept: OrderedDict[bytes, KeptBlock[Place]] = OrderedDict()  # the newest used are last
        # The number of prompts with each block, most recent last. Written by the tokenizer thread
        # only, and read by the loop.
        self.sightings: dict[bytes, int] = {}

    def blocks_of(self, prompt_ids: tuple[int, ...]) -> PromptBlocks:
        """Hash the blocks of a new prompt and count their occurrences."""
        hashes: list[bytes] = []
        before = b""
        for end in range(self.block_tokens, len(prompt_ids) + 1, self.block_tokens):
            tokens = array("q", prompt_ids[end - self.block_tokens : end])
            before = blake2b(before + tokens.tobytes(), digest_size=16).digest()
            hashes.append(before)
            self.sightings[before] = self.sightings.pop(before, 0) + 1
        while len(self.sightings) > MAX_SIGHTINGS:
            del self.sightings[next(iter(self.sightings))]
        return PromptBlocks(self, len(prompt_ids), tuple(hashes))

    def found(self, blocks: PromptBlocks) -> list[KeptBlock[Place]]:
        """The cached blocks with which the prompt begins."""
        found: list[KeptBlock[Place]] = []
        if not self.kept:
            return found
        for each in blocks.usable:
            block = self.kept.get(each)
            if block is None or not block.is_whole:
                break
            found.append(block)
        return found

    def use(self, blocks: PromptBlocks) -> list[KeptBlock[Place]]:
        """The cached blocks with which the prompt begins, marked as recently used."""
        found = self.found(blocks)
        self._touch(blocks.hashes[: len(found)])
        return found

    def keep(
        self,
        blocks: PromptBlocks,
        num_read: int,
        place_of: Callable[[int], Place],
        num_gone: int = 0,
    ) -> list[KeptBlock[Place]]:
        """Cache the blocks of a prompt that occurred before. Returns the new blocks.

        num_read: the number of prompt tokens that are computed
        place_of: returns the place of a block, by its number in the prompt
        num_gone: leading tokens that some layer no longer keeps; their blocks cannot be cached, nor
                  can any after them
        """
        hashes = blocks.hashes_of(0, num_read)[: self.room]
        new = []
        for number, each in enumerate(hashes):
            if self.sightings.get(each, 0) < 2:
                break  # later blocks were not either
            if each not in self.kept:
                is_gone = number * self.block_tokens < num_gone
                if is_gone or not self.shrink(self.room - 1):
                    break
                new.append(KeptBlock(place_of(number)))
                self.kept[each] = new[-1]
            self.kept.move_to_end(each)  # so that it is not evicted for the next one
        if new:
            self._touch(hashes)
        return new

    def _touch(self, hashes: tuple[bytes, ...]) -> None:
        """Mark blocks as used now. The first counts as the most recent: more prompts share it."""
        for each in reversed(hashes):
            if each in self.kept:
                self.kept.move_to_end(each)

    def make_room(self, room: int) -> None:
        """Keep at most `room` blocks from now on, and never more than `max_blocks`."""
        self.room = max(0, min(room, self.max_blocks))
        self.shrink(self.room)

    def shrink(self, num_blocks: int) -> bool:
        """Evict blocks until `num_blocks` are left; False if blocks in use prevent that."""
        while len(self.kept) > num_blocks:
            unused = (hash_ for hash_, each in self.kept.items() if each.num_users == 0)
            if (oldest := next(unused, None)) is None:
                return False
            self.free(self.kept.pop(oldest).place)
        return True

    def check(self, num_users: dict[int, int]) -> None:
        """Raise InvariantBroken unless the blocks have these numbers of users, by id."""
        counted = {id(each): each.num_users for each in self.kept.values() if each.num_users}
        if counted != num_users:
            raise InvariantBroken(
                f"{len(num_users)} blocks of prompts are read by {sum(num_users.values())} "
                f"sequences, and {len(counted)} by {sum(counted.values())} are counted"
            )
        if len(self.kept) > self.max_blocks:
            raise InvariantBroken(f"{len(self.kept)} blocks are kept, of {self.max_blocks}")
