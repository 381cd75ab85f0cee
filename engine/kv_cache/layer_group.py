"""LayerGroup: the keys and values of one sequence in all layers with the same window.

Layers without a window keep every token. Layers with a window W keep W tokens and a bounded number
more: when the columns are full, the last W are copied to the front of a new buffer, so that the
keys of a row stay contiguous, as compiled attention reads them. That happens at most once in W / 8
tokens, so it costs little beside attending to W tokens in each step.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from engine.kv_cache.base import KVShape
from engine.kv_cache.buffer_pool import LARGE_BYTES, BufferPool, new_pages

# Columns are added and dropped in buckets of this size. So tokens keep their position within a
# bucket, and sums over them keep their order.
BUCKET_TOKENS = 64

# The most prompt tokens that a step reads if layers have windows, since each layer keeps them too.
SLICE_TOKENS = 512

LayerNumbers = list[int] | slice


class LayerGroup:
    """The keys and values of one sequence in some layers.

    Always: token t is in column `t - first`. The columns from `first` up to the length of the
    sequence are written and no others are read. They hold all tokens, or at least those in the
    window. While a step adds n tokens to a window W there are at most `max_columns(W)` columns or,
    if that is more, W + n and two buckets.
    """

    def __init__(
        self,
        shape: KVShape,
        layers: LayerNumbers,
        window: int | None,
        num_rows: int,
        by_ancestors: bool,
        poisoned: bool,
        buffer_pool: BufferPool,
    ) -> None:
        """layers: the numbers of the group's layers"""
        self.shape = shape
        self.layers = layers
        self.window = window
        self.poisoned = poisoned
        self.buffer_pool = buffer_pool
        num_layers = shape.num_layers if isinstance(layers, slice) else len(layers)
        self.sizes = (num_layers, 2, num_rows, shape.num_heads)
        self.first = 0  # tokens before the first column
        self.kv = self._empty(0)  # (layers, 2, rows, heads, capacity, head size)
        # (rows, capacity) int32: the row in which each token of a row is
        self.ancestors: np.ndarray | None = None
        if by_ancestors and num_rows > 1:
            self.ancestors = np.zeros((num_rows, 0), np.int32)

    @property
    def capacity(self) -> int:
        return self.kv.shape[4]

    def columns(self, begin: int, end: int) -> slice:
        """The columns of the tokens [begin, end), which must still be kept."""
        return slice(begin - self.first, end - self.first)

    def skip(self, num_tokens: int) -> None:
        """Leave out, while empty, the tokens that the window no longer shows after `num_tokens`."""
        self.first = self._first_kept(num_tokens)

    def reserve(self, length: int, num_tokens: int, max_tokens: int) -> int:
        """Make sure that there are columns for `num_tokens` after the first `length`.

        Where it allocates new columns, it drops the tokens that the window has passed.

        max_tokens: the longest that the sequence may become; 0: unknown
        returns:    the length up to which another call changes nothing
        """
        end, first = length + num_tokens, self._first_kept(length)
        needed = rounded_up(end - first, BUCKET_TOKENS)
        at_rest = max(end, max_tokens) if self.window is None else max_columns(self.window)
        is_full = end - self.first > self.capacity
        if is_full or (self.window is not None and self.capacity > max(at_rest, needed)):
            most = at_rest if first or not max_tokens else min(at_rest, max(end, max_tokens))
            most = max(needed, rounded_up(most, BUCKET_TOKENS))
            self._move(first, length, most if first or self._is_large(most) else needed)
        if self.window is not None and self.capacity > at_rest:
            return end  # the buffer is as wide as a long prompt needed, and will shrink
        return self.first + self.capacity

    def _first_kept(self, length: int) -> int:
        if self.window is None:
            return 0
        return max(self.first, (length - self.window) // BUCKET_TOKENS * BUCKET_TOKENS)

    def _move(self, first: int, length: int, capacity: int) -> None:
        """Move the tokens from `first` on to a new buffer."""
        before, self.kv = self.kv, self._empty(capacity)
        num_kept = max(length - first, 0)
        kept = self.columns(first, first + num_kept)
        self.kv[..., :num_kept, :] = before[..., kept, :]
        if self.poisoned:
            before.fill_(torch.nan)
        self.buffer_pool.put(before)
        if self.ancestors is not None:
            # A future token is written by its own row.
            num_rows = len(self.ancestors)
            own = np.arange(num_rows, dtype=np.int32)[:, None]
            grown = np.broadcast_to(own, (num_rows, capacity)).copy()
            grown[:, :num_kept] = self.ancestors[:, kept]
            self.ancestors = grown
        self.first = first

    def commit_prompt(self, length: int) -> None:
        """Let all rows read the first `length` tokens of the first row."""
        if self.ancestors is not None:
            self.ancestors[:, : length - self.first] = 0

    def reorder(self, rows: Tensor, length: int) -> None:
        """Copy row `rows[i]` to row i. rows: (rows,) int64"""
        if self.ancestors is not None:
            used = self.ancestors[:, : length - self.first]
            used[:] = used[rows.numpy()]
            return
        kv = self.kv[..., : length - self.first, :]
        kv.copy_(kv.index_select(2, rows))

    def clear(self) -> None:
        if self.poisoned:
            self.kv.fill_(torch.nan)
        self.buffer_pool.put(self.kv)
        self.kv, self.first = self._empty(0), 0

    def _is_large(self, capacity: int) -> bool:
        return self._num_bytes(capacity) >= LARGE_BYTES and self.shape.device.type == "cpu"

    def _num_bytes(self, capacity: int) -> int:
        return capacity * math.prod(self.sizes) * self.shape.head_size * self.shape.dtype.itemsize

    def _empty(self, capacity: int) -> Tensor:
        sizes, shape = (*self.sizes, capacity, self.shape.head_size), self.shape
        num_bytes = self._num_bytes(capacity)
        pooled = self.buffer_pool.take(num_bytes)
        if pooled is not None:
            empty = pooled.view(shape.dtype).view(sizes)
        elif self._is_large(capacity):
            empty = new_pages(num_bytes).view(shape.dtype).view(sizes)
        else:
            empty = torch.empty(sizes, dtype=shape.dtype, device=shape.device)
        return empty.fill_(torch.nan) if self.poisoned else empty


def max_columns(window: int) -> int:
    """The most columns of a decoding row in a layer with a window.

    They are the window and an eighth of it, rounded up to buckets, and one bucket.
    """
    return rounded_up(window + window // 8, BUCKET_TOKENS) + BUCKET_TOKENS


def layers_by_window(
    num_layers: int, windows: tuple[int | None, ...]
) -> dict[int | None, LayerNumbers]:
    """Group the layers by window. windows: of each layer; (): no layer has one"""
    if len(set(windows)) < 2:
        return {(windows or (None,))[0]: slice(num_layers)}
    return {
        window: [layer for layer, each in enumerate(windows) if each == window]
        for window in dict.fromkeys(windows)
    }


def layer_numbers(num_layers: int, layers: LayerNumbers) -> list[int]:
    """The numbers of the layers of a group, in a model with `num_layers`."""
    return list(range(num_layers)[layers]) if isinstance(layers, slice) else layers


def rounded_up(num_tokens: int, multiple: int) -> int:
    return -(-num_tokens // multiple) * multiple
