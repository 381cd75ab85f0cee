"""AttentionBackend: one token of each row of a step attends to the keys of its own slot.

Slots of their own have any length, so there is no padding and no mask. Two ways to the same
result: torch, slot by slot, is here; a compiled kernel for float32 on a CPU is in
`compiled_row_attention.py`. A third, for a GPU, is in `arena_attention.py`.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.kv_cache.contiguous import BufferPool, ContiguousSequenceCache, KVShape, SequenceCache

Spans = tuple[tuple[int, int], ...]  # [begin, end) of each prompt in a row of several


MAX_LEFT_BYTES = 48 * 2**20  # of slots that ended, for those that come


class AttentionBackend(Protocol):
    """Makes slots of its kind, and is given no others."""

    bias: Tensor | None
    """(query heads, width), added to the scores; the last column is that of the row's newest
    token, and there is one for every column of every slot."""

    def new_slot(self, num_rows: int, num_expected: int) -> SequenceCache:
        """num_expected: columns that it may come to have"""

    def hold_prompts(self, slots: list[Any], spans: Spans) -> None:
        """Empty ones, for prompts that are read one after the other in a single row."""

    def fill(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keep what a layer makes of them. keys, values: (1, heads, tokens, head size)"""

    def hold(self, slots: list[Any]) -> None:
        """The slots of the next step, in the order of its rows, with room for a column."""

    def attend(
        self, layer: int, query: Tensor, keys: Tensor | None, values: Tensor | None, scale: float
    ) -> Tensor:
        """query:        (rows, query heads, 1, head size)
        keys, values: (rows, heads, 1, head size), written to the column after the last of
                      each row; None where a slot's rows read what is in it of the prompt
        returns:      (rows, 1, query heads, head size)
        """


class ContiguousAttentionBackend(AttentionBackend):
    """What both do with slots that have memory of their own."""

    by_ancestors: bool
    """Whether it follows a slot's `ancestors`, so that beams move no columns."""
    is_repeatable: bool
    """Whether a step can be recorded: what it calls is the same whatever is in the slots."""

    def __init__(self, shape: KVShape, is_cross: bool, poisoned: bool) -> None:
        self.shape = shape
        self.is_cross = is_cross
        self.poisoned = poisoned
        self.bias: Tensor | None = None
        self.prompts: list[tuple[ContiguousSequenceCache, tuple[int, int]]] = []
        self.buffer_pool = BufferPool(MAX_LEFT_BYTES)

    def new_slot(self, num_rows: int, num_expected: int = 0) -> ContiguousSequenceCache:
        return ContiguousSequenceCache(
            self.shape, num_rows, self.by_ancestors, self.poisoned, num_expected, self.buffer_pool
        )

    def hold_prompts(self, slots: list[ContiguousSequenceCache], spans: Spans) -> None:
        self.prompts = list(zip(slots, spans, strict=True))
        for slot, (begin, end) in self.prompts:
            slot.make_room(end - begin + 1)

    def fill(self, layer: int, keys: Tensor, values: Tensor) -> None:
        for slot, (begin, end) in self.prompts:
            slot.fill(layer, keys[0, :, begin:end], values[0, :, begin:end])


class TorchAttentionBackend(ContiguousAttentionBackend):
    by_ancestors = False
    is_repeatable = False

    def __init__(self, shape: KVShape, is_cross: bool, poisoned: bool) -> None:
        super().__init__(shape, is_cross, poisoned)
        self.slots: list[ContiguousSequenceCache] = []

    def hold(self, slots: list[ContiguousSequenceCache]) -> None:
        self.slots = slots

    def attend(
        self, layer: int, query: Tensor, keys: Tensor | None, values: Tensor | None, scale: float
    ) -> Tensor:
        num_rows, num_heads, _, head_size = query.shape
        attended = query.new_empty(num_rows, 1, num_heads, head_size)
        at = 0
        for slot in self.slots:
            mine = slice(at, at + slot.num_rows)
            if keys is not None and values is not None:
                slot.kept[layer, 0, :, :, slot.length] = keys[mine, :, 0]
                slot.kept[layer, 1, :, :, slot.length] = values[mine, :, 0]
            seen = self._seen(slot, layer, query[mine], scale)
            attended[mine, 0] = seen.reshape(slot.num_rows, num_heads, head_size)
            at += slot.num_rows
        return attended

    def _seen(
        self, slot: ContiguousSequenceCache, layer: int, query: Tensor, scale: float
    ) -> Tensor:
        if self.is_cross:
            assert slot.crossed is not None
            keys, values = slot.crossed[layer]
            # Rows of one request read the same keys, once.
            asked = query[:, :, 0].transpose(0, 1)  # (heads, rows, head size)
            return scaled_dot_product_attention(asked, keys, values, scale=scale).transpose(0, 1)
        keys, values = slot.kept[layer, :, :, :, : slot.length + 1]
        # Query heads that share a key head are its queries: no key is repeated.
        asked = query.reshape(slot.num_rows, keys.shape[1], -1, query.shape[-1])
        bias = None if self.bias is None else self.bias[None, :, None, -(slot.length + 1) :]
        return scaled_dot_product_attention(asked, keys, values, attn_mask=bias, scale=scale)


def by_rows(tensor: Tensor) -> Tensor:
    """With the heads of a row one after the other. tensor: (rows, heads, 1, head size)"""
    head_size = tensor.shape[3]
    if tensor.stride(3) == 1 and tensor.stride(1) == head_size:
        return tensor
    return tensor.contiguous()


def usual_scale(head_size: int) -> float:
    return 1 / math.sqrt(head_size)
