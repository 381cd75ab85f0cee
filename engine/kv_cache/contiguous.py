"""SequenceCache: the keys and values of one sequence, kept from step to step.

One of its own grows with its sequence, in buckets, so that a model with a long context
costs what its sequences need and not what they might. One in a page pool is in `paged.py`.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

BUCKET_TOKENS = 64
# What may become as large has pages of the system's from the start, which go back to it. In the
# heap, slots of all sizes leave holes that nothing fits, as much again as they are; and pages
# that nobody wrote to cost nothing, while moving house does.
LARGE_BYTES = 2**20
MAX_LEFT = 4


@dataclass(frozen=True, slots=True)
class KVShape:
    """What a model keeps of one token: `num_layers` times a key and a value of each head."""

    num_layers: int
    num_heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_heads * self.head_size * self.dtype.itemsize


class SequenceCache(Protocol):
    """What is kept of a sequence, wherever that is."""

    num_rows: int
    length: int  # columns that are counted, the same in each row

    @property
    def capacity(self) -> int:
        """Columns for which there is room."""

    def make_room(self, num_columns: int = 1) -> None:
        """For so many more columns."""

    def filled(self, num_columns: int) -> None:
        """Count the columns of a prompt."""

    def keep_crossed(self, crossed: Tensor) -> None:
        """What the encoder left: (layers, 2, heads, prompt, head size)"""

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was."""

    def clear(self) -> None:
        """Give the memory back."""


class BufferPool:
    """Memory of slots that ended, for those that come: the system fills its pages with zeros
    first, which is a twentieth of a small model's step. At most `max_bytes` of it, for a large
    model has other things to wait for, and of MAX_LEFT slots: few end in one step."""

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self.left: list[torch.UntypedStorage] = []  # the one that was left last is the last

    def leave(self, kept: Tensor) -> None:
        storage = kept.untyped_storage()
        if storage.nbytes():
            self.left.append(storage)
        del self.left[:-MAX_LEFT]
        while sum(each.nbytes() for each in self.left) > self.max_bytes:
            del self.left[0]

    def take(self, num_bytes: int) -> Tensor | None:
        """So many bytes of the smallest in which they are."""
        enough = [at for at, each in enumerate(self.left) if each.nbytes() >= num_bytes]
        if not num_bytes or not enough:
            return None
        storage = self.left.pop(min(enough, key=lambda at: self.left[at].nbytes()))
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)[:num_bytes]

    def clear(self) -> None:
        self.left.clear()


class ContiguousSequenceCache:
    """Its rows share one length. Always: columns before `length` are written, later ones
    are never read."""

    def __init__(
        self,
        shape: KVShape,
        num_rows: int,
        by_ancestors: bool,
        poisoned: bool = False,
        num_expected: int = 0,
        buffer_pool: BufferPool | None = None,
    ) -> None:
        """by_ancestors: rows that change places move no columns but say where theirs are
        poisoned: columns that nobody wrote are NaN, so that a test sees them read
        num_expected: columns, at most
        buffer_pool: where its memory comes from, if there is enough, and goes to"""
        self.shape = shape
        self.num_rows = num_rows
        self.poisoned = poisoned
        self.num_expected = num_expected
        self.buffer_pool = buffer_pool or BufferPool()
        self.length = 0
        self.kept = self._empty(0)  # (layers, 2, rows, heads, capacity, head size)
        self.crossed: Tensor | None = None  # (layers, 2, heads, prompt, head size)
        # (rows, capacity) int32: the row in which each column of a row is
        self.ancestors: np.ndarray | None = None
        if by_ancestors and num_rows > 1:
            self.ancestors = np.zeros((num_rows, 0), np.int32)

    @property
    def capacity(self) -> int:
        return self.kept.shape[4]

    @property
    def num_written_rows(self) -> int:
        """Into how many a prompt is written: rows that say where their columns are share those
        of the first."""
        return self.num_rows if self.ancestors is None else 1

    def make_room(self, num_columns: int = 1) -> None:
        if self.length + num_columns <= self.capacity:
            return
        capacity = self._capacity_for(self.length + num_columns)
        before, self.kept = self.kept, self._empty(capacity)
        self.kept[..., : self.length, :] = before[..., : self.length, :]
        self.buffer_pool.leave(before)
        if self.ancestors is not None:
            # A column that is yet to come is written by its own row.
            own = np.arange(self.num_rows, dtype=np.int32)[:, None]
            grown = np.broadcast_to(own, (self.num_rows, capacity)).copy()
            grown[:, : self.length] = self.ancestors[:, : self.length]
            self.ancestors = grown

    def fill(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """One layer's first columns, the same for every row, to be counted with `filled`.

        keys, values: (heads, columns, head size)
        """
        num_columns = keys.shape[1]
        self.kept[layer, 0, : self.num_written_rows, :, :num_columns] = keys
        self.kept[layer, 1, : self.num_written_rows, :, :num_columns] = values

    def filled(self, num_columns: int) -> None:
        self.length = num_columns
        if self.ancestors is not None:
            self.ancestors[:, :num_columns] = 0

    def keep_crossed(self, crossed: Tensor) -> None:
        self.crossed = crossed.contiguous()

    def reorder(self, rows: Tensor) -> None:
        if self.ancestors is not None:
            used = self.ancestors[:, : self.length]
            used[:] = used[rows.numpy()]
            return
        kept = self.kept[..., : self.length, :]
        kept.copy_(kept.index_select(2, rows))

    @torch.inference_mode()
    def clear(self) -> None:
        if self.poisoned:
            self.kept.fill_(torch.nan)
            if self.crossed is not None:
                self.crossed.fill_(torch.nan)
        self.buffer_pool.leave(self.kept)
        self.kept, self.crossed = self._empty(0), None
        self.length = 0

    def _capacity_for(self, num_columns: int) -> int:
        large = rounded_up(max(num_columns, self.num_expected), BUCKET_TOKENS)
        return large if self._is_large(large) else rounded_up(num_columns, BUCKET_TOKENS)

    def _is_large(self, capacity: int) -> bool:
        num_bytes = capacity * self.num_rows * self.shape.bytes_per_token
        return num_bytes >= LARGE_BYTES and self.shape.device.type == "cpu"

    def _empty(self, capacity: int) -> Tensor:
        shape = self.shape
        sizes = (shape.num_layers, 2, self.num_rows, shape.num_heads, capacity, shape.head_size)
        num_bytes = math.prod(sizes) * shape.dtype.itemsize
        left = self.buffer_pool.take(num_bytes)
        if left is not None:
            empty = left.view(shape.dtype).view(sizes)
        elif self._is_large(capacity):
            empty = new_pages(num_bytes).view(shape.dtype).view(sizes)
        else:
            empty = torch.empty(sizes, dtype=shape.dtype, device=shape.device)
        return empty.fill_(torch.nan) if self.poisoned else empty


def new_pages(num_bytes: int) -> Tensor:
    """So many bytes of the system's, from the heap of nobody. Raises MemoryError."""
    try:
        pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no {num_bytes} bytes for a slot") from error
    return torch.frombuffer(pages, dtype=torch.uint8)


def rounded_up(num_tokens: int, multiple: int) -> int:
    return -(-num_tokens // multiple) * multiple
