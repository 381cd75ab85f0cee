"""ContiguousKVCache: each sequence has a tensor of its own, which grows with it in buckets.

So a model with a long context costs what its sequences need, and not what they might.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from engine.errors import InvariantBroken
from engine.kv_cache.base import KVShape
from engine.kv_cache.encoded import Encoded, check_holders
from engine.kv_cache.prefix_cache import PrefixCache, PromptBlocks

BLOCK_TOKENS = 32  # of prompts that share their beginnings
BUCKET_TOKENS = 64
# A tensor that may become as large has pages of the operating system from the start, which are
# returned to it. On the heap, tensors of all sizes leave holes that nothing fits, as much again
# as they are; and pages that were never written cost nothing, while growing copies.
LARGE_BYTES = 2**20
MAX_POOLED_BUFFERS = 4
MAX_POOLED_BYTES = 48 * 2**20


class BufferPool:
    """Memory of sequences that ended, for those that come: the operating system fills its pages
    with zeros first, which is a twentieth of a small model's step. It holds at most `max_bytes`,
    for a large model has other things to wait for, of at most MAX_POOLED_BUFFERS sequences, for
    few end in one step."""

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self.buffers: list[torch.UntypedStorage] = []  # the newest is the last

    def put(self, tensor: Tensor) -> None:
        """Take a tensor's memory over; the oldest is freed if there is too much."""
        storage = tensor.untyped_storage()
        if storage.nbytes():
            self.buffers.append(storage)
        del self.buffers[:-MAX_POOLED_BUFFERS]
        while sum(each.nbytes() for each in self.buffers) > self.max_bytes:
            del self.buffers[0]

    def take(self, num_bytes: int) -> Tensor | None:
        """(num_bytes,) uint8 in the smallest buffer that has as many; None if none has."""
        large = [at for at, each in enumerate(self.buffers) if each.nbytes() >= num_bytes]
        if not num_bytes or not large:
            return None
        storage = self.buffers.pop(min(large, key=lambda at: self.buffers[at].nbytes()))
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)[:num_bytes]

    def clear(self) -> None:
        self.buffers.clear()


class ContiguousSequenceCache:
    """A SequenceCache in one tensor. Always: tokens below `length` are written, later ones are
    never read."""

    def __init__(
        self,
        shape: KVShape,
        num_rows: int,
        by_ancestors: bool,
        poisoned: bool = False,
        max_tokens: int = 0,
        buffer_pool: BufferPool | None = None,
    ) -> None:
        """by_ancestors: rows that change places move no keys but say in which row theirs are
        poisoned: memory that was never written is NaN, so that a test sees it read
        max_tokens: the length that it may come to have; 0: unknown
        buffer_pool: where its memory comes from, if there is enough, and goes to"""
        self.shape = shape
        self.num_rows = num_rows
        self.poisoned = poisoned
        self.max_tokens = max_tokens
        self.buffer_pool = buffer_pool or BufferPool()
        self.length = 0
        self.kv = self._empty(0)  # (layers, 2, rows, heads, capacity, head size)
        # (layers, 2, heads, prompt tokens, head size), which others may hold, too
        self.encoded: Encoded[Tensor] | None = None
        # (rows, capacity) int32: the row in which each token of a row is
        self.ancestors: np.ndarray | None = None
        if by_ancestors and num_rows > 1:
            self.ancestors = np.zeros((num_rows, 0), np.int32)

    @property
    def capacity(self) -> int:
        return self.kv.shape[4]

    @property
    def num_prompt_rows(self) -> int:
        """The number of rows into which a prompt is written: rows with `ancestors` share that
        of the first."""
        return self.num_rows if self.ancestors is None else 1

    def reserve(self, num_tokens: int = 1) -> None:
        if self.length + num_tokens <= self.capacity:
            return
        capacity = self._capacity_for(self.length + num_tokens)
        before, self.kv = self.kv, self._empty(capacity)
        self.kv[..., : self.length, :] = before[..., : self.length, :]
        self.buffer_pool.put(before)
        if self.ancestors is not None:
            # A token that is yet to come is written by its own row.
            own = np.arange(self.num_rows, dtype=np.int32)[:, None]
            grown = np.broadcast_to(own, (self.num_rows, capacity)).copy()
            grown[:, : self.length] = self.ancestors[:, : self.length]
            self.ancestors = grown

    def write_prompt(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write one layer's next tokens of a prompt, the same for every row; `commit_prompt` counts
        them.

        keys, values: (heads, tokens, head size)
        """
        columns = slice(self.length, self.length + keys.shape[1])
        self.kv[layer, 0, : self.num_prompt_rows, :, columns] = keys
        self.kv[layer, 1, : self.num_prompt_rows, :, columns] = values

    def take_prefix(self, blocks: PromptBlocks) -> None:
        """Begin with a copy of what is kept of the prompt."""
        kept, size = blocks.cache.use(blocks), blocks.cache.block_tokens
        if not kept:
            return
        self.reserve(blocks.num_tokens + 1)
        for number, block in enumerate(kept):
            columns = slice(number * size, (number + 1) * size)
            self.kv[:, :, : self.num_prompt_rows, :, columns] = block.place[:, :, None]
        self.commit_prompt(len(kept) * size)

    def keep_prefix(self, blocks: PromptBlocks) -> None:
        """Let the cache of prefixes copy what it is to keep of the prompt."""
        size = blocks.cache.block_tokens

        def place_of(number: int) -> Tensor:
            return self.kv[:, :, 0, :, number * size : (number + 1) * size].clone()

        blocks.cache.keep(blocks, self.length, place_of)

    def commit_prompt(self, num_tokens: int) -> None:
        self.length = num_tokens
        if self.ancestors is not None:
            self.ancestors[:, :num_tokens] = 0

    def commit_token(self) -> None:
        self.length += 1

    @property
    def encoded_kv(self) -> Tensor | None:
        return None if self.encoded is None else self.encoded.content

    def write_encoded(self, keys_values: Tensor) -> Encoded[Tensor]:
        free = poison if self.poisoned else leave
        encoded = Encoded(keys_values.contiguous(), free)
        self.share_encoded(encoded)
        return encoded

    def share_encoded(self, encoded: Encoded[Tensor]) -> None:
        self.encoded = encoded.hold(self)

    def reorder(self, rows: Tensor) -> None:
        if self.ancestors is not None:
            used = self.ancestors[:, : self.length]
            used[:] = used[rows.numpy()]
            return
        kv = self.kv[..., : self.length, :]
        kv.copy_(kv.index_select(2, rows))

    @torch.inference_mode()
    def clear(self) -> None:
        if self.poisoned:
            self.kv.fill_(torch.nan)
        if self.encoded is not None:
            self.encoded.release(self)
        self.buffer_pool.put(self.kv)
        self.kv, self.encoded = self._empty(0), None
        self.length = self.max_tokens = 0

    def _capacity_for(self, num_tokens: int) -> int:
        at_most = rounded_up(max(num_tokens, self.max_tokens), BUCKET_TOKENS)
        return at_most if self._is_large(at_most) else rounded_up(num_tokens, BUCKET_TOKENS)

    def _is_large(self, capacity: int) -> bool:
        num_bytes = capacity * self.num_rows * self.shape.bytes_per_token
        return num_bytes >= LARGE_BYTES and self.shape.device.type == "cpu"

    def _empty(self, capacity: int) -> Tensor:
        shape = self.shape
        sizes = (shape.num_layers, 2, self.num_rows, shape.num_heads, capacity, shape.head_size)
        num_bytes = math.prod(sizes) * shape.dtype.itemsize
        pooled = self.buffer_pool.take(num_bytes)
        if pooled is not None:
            empty = pooled.view(shape.dtype).view(sizes)
        elif self._is_large(capacity):
            empty = new_pages(num_bytes).view(shape.dtype).view(sizes)
        else:
            empty = torch.empty(sizes, dtype=shape.dtype, device=shape.device)
        return empty.fill_(torch.nan) if self.poisoned else empty


class ContiguousKVCache:
    """The KVCacheManager of ContiguousSequenceCaches. Always: no two of them share memory but
    for an encoder's output, which counts them, nor is any of it in the pool, nor that of a prefix
    that is kept."""

    def __init__(
        self,
        shape: KVShape,
        by_ancestors: bool = False,
        poisoned: bool = False,
        max_tokens: int = 0,
        max_prefix_tokens: int = 0,
    ) -> None:
        """by_ancestors, poisoned: see ContiguousSequenceCache
        max_tokens:        of all sequences at their longest, and of prefixes beside them
        max_prefix_tokens: of prefixes that are kept for other sequences; 0: none are"""
        self.shape = shape
        self.by_ancestors = by_ancestors
        self.poisoned = poisoned
        self.max_tokens = max_tokens
        self.buffer_pool = BufferPool(MAX_POOLED_BYTES)
        self.prefixes: PrefixCache[Tensor] | None = None
        if max_prefix_tokens:
            max_blocks = max_prefix_tokens // BLOCK_TOKENS
            self.prefixes = PrefixCache(BLOCK_TOKENS, max_blocks, self._let_go)
        self.sequences: WeakSet[ContiguousSequenceCache] = WeakSet()

    def new_sequence(self, num_rows: int, max_tokens: int = 0) -> ContiguousSequenceCache:
        cache = ContiguousSequenceCache(
            self.shape, num_rows, self.by_ancestors, self.poisoned, max_tokens, self.buffer_pool
        )
        if self.prefixes is not None:
            self.sequences.add(cache)
            reserved = sum(each.num_rows * each.max_tokens for each in self.sequences)
            self.prefixes.make_room((self.max_tokens - reserved) // BLOCK_TOKENS)
        return cache

    def _let_go(self, block: Tensor) -> None:
        if self.poisoned:
            with torch.inference_mode():
                block.fill_(torch.nan)

    def free_all_but(self, caches: Iterable[ContiguousSequenceCache]) -> None:
        """The memory of a cache without an owner goes with it; what is pooled is freed here, and
        so are prefixes."""
        self.buffer_pool.clear()
        if self.prefixes is not None:
            self.prefixes.shrink(0)

    def check(self, caches: Iterable[ContiguousSequenceCache]) -> None:
        owners = list(caches)
        check_holders(owners)
        storages = [each.kv.untyped_storage() for each in owners]
        storages += self.buffer_pool.buffers
        if self.prefixes is not None:
            self.prefixes.check({})
            storages += [each.place.untyped_storage() for each in self.prefixes.kept.values()]
        addresses = [each.data_ptr() for each in storages if each.nbytes()]
        if len(set(addresses)) != len(addresses):
            raise InvariantBroken(
                f"{len(addresses)} sequences and pooled buffers have {len(set(addresses))} tensors"
            )


@torch.inference_mode()
def poison(tensor: Tensor) -> None:
    tensor.fill_(torch.nan)


def leave(_: Tensor) -> None:
    """The memory of a tensor goes with it."""


def new_pages(num_bytes: int) -> Tensor:
    """(num_bytes,) uint8 in pages of the operating system, off the heap. Raises MemoryError."""
    try:
        pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no {num_bytes} bytes for the keys of a sequence") from error
    return torch.frombuffer(pages, dtype=torch.uint8)


def rounded_up(num_tokens: int, multiple: int) -> int:
    return -(-num_tokens // multiple) * multiple
