"""RowAttention: one token of each row of a step attends to the keys of its own slot.

Slots of their own have any length, so there is no padding and no mask. Two ways to the same
result: a compiled kernel for float32 on a CPU, and torch, slot by slot, elsewhere. A third,
for a GPU, is in `arena_attention.py`.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from worker.engine.compiling import compiled
from worker.engine.recording import on_tape
from worker.engine.slots import KVShape, OwnSlot, Slot

log = logging.getLogger(__name__)

Spans = tuple[tuple[int, int], ...]  # [begin, end) of each prompt in a row of several


class RowAttention(Protocol):
    """Makes slots of its kind, and is given no others."""

    bias: Tensor | None
    """(query heads, width), added to the scores; the last column is that of the row's newest
    token, and there is one for every column of every slot."""

    def new_slot(self, num_rows: int) -> Slot: ...

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


def row_attention(shape: KVShape, is_cross: bool, poisoned: bool) -> OwnRowAttention:
    """The quickest there is for such keys in slots of their own.

    is_cross: rows attend to the prompt's
    poisoned: memory that must not be read is NaN; for tests
    """
    if shape.device.type == "cpu" and shape.dtype == torch.float32:
        kernel = compiled("kernel")
        if kernel is not None:
            return CompiledRowAttention(kernel, shape, is_cross, poisoned)
        log.warning("nothing is compiled here, attention is slow")
    return TorchRowAttention(shape, is_cross, poisoned)


class OwnRowAttention(RowAttention):
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
        self.prompts: list[tuple[OwnSlot, tuple[int, int]]] = []

    def new_slot(self, num_rows: int) -> OwnSlot:
        return OwnSlot(self.shape, num_rows, self.by_ancestors, self.poisoned)

    def hold_prompts(self, slots: list[OwnSlot], spans: Spans) -> None:
        self.prompts = list(zip(slots, spans, strict=True))
        for slot, (begin, end) in self.prompts:
            slot.make_room(end - begin + 1)

    def fill(self, layer: int, keys: Tensor, values: Tensor) -> None:
        for slot, (begin, end) in self.prompts:
            slot.fill(layer, keys[0, :, begin:end], values[0, :, begin:end])


class CompiledRowAttention(OwnRowAttention):
    by_ancestors = True
    is_repeatable = True

    def __init__(self, kernel: Any, shape: KVShape, is_cross: bool, poisoned: bool) -> None:
        super().__init__(shape, is_cross, poisoned)
        self.kernel = kernel
        self.run = kernel.kernel()
        self.num_rows = 0
        self.tables: Any = None  # (layers, slots, slot fields) int64
        self.scratch = np.empty((0, 0), np.float32)
        self.arguments = np.zeros(kernel.NUM_ARGUMENTS, np.int64)
        self.arguments[kernel.NUM_HEADS] = shape.num_heads
        self.arguments[kernel.HEAD_SIZE] = shape.head_size

    def hold(self, slots: list[OwnSlot]) -> None:
        kernel, shape = self.kernel, self.shape
        self.num_rows = sum(slot.num_rows for slot in slots)
        tables = np.zeros((shape.num_layers, len(slots), kernel.NUM_SLOT_FIELDS), np.int64)
        first_row = 0
        rows: list[tuple[int, ...]] = []
        for slot in slots:
            ancestors: int = 0
            if self.is_cross:
                assert slot.crossed is not None
                kept, num_columns, row_stride = slot.crossed, slot.crossed.shape[3], 0
                capacity = num_columns
            else:
                kept, num_columns, row_stride = slot.kept, slot.length + 1, slot.kept.stride(2)
                capacity = slot.capacity
                if slot.ancestors is not None:
                    ancestors = slot.ancestors.ctypes.data
            layer_bytes, half_bytes = 4 * kept.stride(0), 4 * kept.stride(1)
            rows.append(
                (kept.data_ptr(), layer_bytes, half_bytes, capacity, row_stride, slot.num_rows,
                 num_columns, first_row, ancestors)
            )  # fmt: skip
            first_row += slot.num_rows
        told = np.array(rows, np.int64)
        layers = np.arange(shape.num_layers)[:, None]
        tables[:, :, kernel.KEYS] = told[:, 0] + layers * told[:, 1]
        tables[:, :, kernel.VALUES] = tables[:, :, kernel.KEYS] + told[:, 2]
        tables[:, :, kernel.CAPACITY :] = told[:, 3:]
        self.tables = tables
        self.make_scratch(int(told[:, 6].max()))
        self.arguments[kernel.NUM_SLOTS] = len(slots)

    def make_scratch(self, num_columns: int) -> None:
        num_threads = torch.get_num_threads()
        if self.scratch.shape[0] < num_threads or self.scratch.shape[1] < num_columns:
            self.scratch = np.empty((num_threads, 2 * num_columns), np.float32)
            self.arguments[self.kernel.SCRATCH] = self.scratch.ctypes.data
            self.arguments[self.kernel.SCRATCH_WIDTH] = self.scratch.shape[1]

    def attend(
        self, layer: int, query: Tensor, keys: Tensor | None, values: Tensor | None, scale: float
    ) -> Tensor:
        num_rows, num_heads, _, head_size = query.shape
        assert num_rows == self.num_rows
        attended = torch.empty((num_rows, 1, num_heads, head_size))
        if keys is not None and values is not None:
            keys, values = by_rows(keys), by_rows(values)
        on_tape(self._attend, layer, by_rows(query), keys, values, scale, attended)
        return attended

    def _attend(
        self,
        layer: int,
        query: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
        scale: float,
        attended: Tensor,
    ) -> None:
        """As above, into `attended`."""
        kernel, told = self.kernel, self.arguments
        told[kernel.GROUP] = query.shape[1] // self.shape.num_heads
        told[kernel.QUERY] = query.data_ptr()
        told[kernel.QUERY_STRIDE] = query.stride(0)
        told[kernel.OUT] = attended.data_ptr()
        if keys is not None and values is not None:
            told[kernel.NEW_KEYS] = keys.data_ptr()
            told[kernel.NEW_VALUES] = values.data_ptr()
            told[kernel.KEYS_STRIDE] = keys.stride(0)
            told[kernel.VALUES_STRIDE] = values.stride(0)
        if self.bias is not None:
            told[kernel.BIAS] = self.bias.data_ptr()
            told[kernel.BIAS_WIDTH] = self.bias.shape[1]
        told[kernel.SCALE_BITS] = np.float64(scale).view(np.int64)
        told[kernel.SLOTS] = self.tables[layer].ctypes.data
        self.run(told, torch.get_num_threads())


class TorchRowAttention(OwnRowAttention):
    by_ancestors = False
    is_repeatable = False

    def __init__(self, shape: KVShape, is_cross: bool, poisoned: bool) -> None:
        super().__init__(shape, is_cross, poisoned)
        self.slots: list[OwnSlot] = []

    def hold(self, slots: list[OwnSlot]) -> None:
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

    def _seen(self, slot: OwnSlot, layer: int, query: Tensor, scale: float) -> Tensor:
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
