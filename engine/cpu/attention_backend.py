"""CpuAttentionBackend: compiled attention to contiguous slots, decode and prefill."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from engine.attention.base import (
    ContiguousAttentionBackend,
    Spans,
    TorchAttentionBackend,
    by_rows,
)
from engine.cpu.captured_ops import captured_call
from engine.cpu.self_test import agrees, kernel_module
from engine.kv_cache.contiguous import ContiguousSequenceCache, KVShape

log = logging.getLogger(__name__)


class CpuAttentionBackend(ContiguousAttentionBackend):
    """Attends by one compiled call a layer, whatever the lengths of the slots."""

    by_ancestors = True
    is_repeatable = True

    def __init__(self, kernel: Any, shape: KVShape, is_cross: bool, poisoned: bool) -> None:
        super().__init__(shape, is_cross, poisoned)
        self.kernel = kernel
        self.prefill_kernel = kernel_module("kernels.prefill_attention")
        self.num_rows = 0
        self.no_slots = SlotTable(kernel, shape.num_layers, [])
        self.rows_table = self.prompts_table = self.no_slots
        # The keys and values of the last step's slots, and how many columns each had.
        self.held: list[tuple[ref[Tensor], int]] = []
        self.scratch = np.empty((0, 0), np.float32)
        self.first_arguments: tuple[int, ...] = ()  # of every kernel

    def hold(self, slots: list[ContiguousSequenceCache]) -> None:
        self.prompts_table = self.no_slots
        if slots and not self.is_cross and self._are_a_column_longer(slots):
            # The slots of the last step, as most of the time.
            self.rows_table.fields[:, :, self.kernel.NUM_COLUMNS] += 1
            self.make_scratch_for(max(slot.length for slot in slots) + 1)
        else:
            self._describe(slots)
        self.held = [(ref(slot.kept), slot.length) for slot in slots]

    def _are_a_column_longer(self, slots: list[ContiguousSequenceCache]) -> bool:
        return len(slots) == len(self.held) and all(
            slot.kept is kept() and slot.length == length + 1
            for slot, (kept, length) in zip(slots, self.held, strict=True)
        )

    def _describe(self, slots: list[ContiguousSequenceCache]) -> None:
        self.num_rows = sum(slot.num_rows for slot in slots)
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
            rows.append(
                (*addresses_of(kept), capacity, row_stride, slot.num_rows, num_columns, first_row,
                 ancestors)
            )  # fmt: skip
            first_row += slot.num_rows
            self.make_scratch_for(num_columns)
        self.rows_table = SlotTable(self.kernel, self.shape.num_layers, rows)

    def hold_prompts(self, slots: list[ContiguousSequenceCache], spans: Spans) -> None:
        super().hold_prompts(slots, spans)
        if self.prefill_kernel is None:
            return
        rows: list[tuple[int, ...]] = []
        for slot, (begin, end) in self.prompts:
            rows.append(
                (*addresses_of(slot.kept), slot.capacity, slot.kept.stride(2),
                 slot.num_written_rows, end - begin, self.num_rows + begin, 0)
            )  # fmt: skip
            self.make_scratch(self.prefill_kernel.scratch_width(end - begin, self.shape.head_size))
        self.prompts_table = SlotTable(self.kernel, self.shape.num_layers, rows)

    def make_scratch_for(self, num_columns: int) -> None:
        self.make_scratch(self.kernel.scratch_width(num_columns, self.shape.head_size))

    def make_scratch(self, num_floats: int) -> None:
        """Make room for at least `num_floats` for each thread."""
        num_threads = torch.get_num_threads()
        if self.scratch.shape[0] < num_threads or self.scratch.shape[1] < num_floats:
            self.scratch = np.empty((num_threads, 2 * num_floats), np.float32)
            self.first_arguments = (
                self.shape.num_heads, self.shape.head_size, self.scratch.ctypes.data,
                self.scratch.shape[1],
            )  # fmt: skip

    def attend(
        self, layer: int, query: Tensor, keys: Tensor | None, values: Tensor | None, scale: float
    ) -> Tensor:
        num_rows, num_heads, _, head_size = query.shape
        assert num_rows == self.num_rows
        attended = torch.empty((num_rows, 1, num_heads, head_size))
        if keys is not None and values is not None:
            keys, values = by_rows(keys), by_rows(values)
        captured_call(self._attend, layer, by_rows(query), keys, values, scale, attended)
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
        """Attend as `attend` does, into `attended`: (rows, 1, query heads, head size)."""
        new: tuple[int, ...] = (0, 0, 0, 0)
        if keys is not None and values is not None:
            new = (keys.data_ptr(), keys.stride(0), values.data_ptr(), values.stride(0))
        bias = (0, 0) if self.bias is None else (self.bias.data_ptr(), self.bias.shape[1])
        self.kernel.run(
            torch.get_num_threads(), *self.first_arguments, *self.rows_table.of_layer(layer),
            query.shape[1] // self.shape.num_heads, scale, query.data_ptr(), query.stride(0),
            *new, attended.data_ptr(), *bias, 0, 0,
        )  # fmt: skip

    def has_prefill(self) -> bool:
        """Return whether the compiled prefill serves heads of this size."""
        head_size = self.shape.head_size
        return self.prefill_kernel is not None and bool(self.prefill_kernel.can_attend(head_size))

    def merged_arguments(
        self, qkv: int, width: int, cos: int, sin: int, scale: float, attended: int
    ) -> tuple[float, ...]:
        """Return a kernel's arguments after those of the slots, for queries, keys and values that
        lie one after the other and are yet to be rotated.

        qkv:      the address of (tokens, heads of queries, keys and values * head size)
        width:    of the queries, and of `attended`
        cos, sin: the addresses of (tokens, head size), of each token's position
        attended: the address of the result, (tokens, width)
        """
        of_keys = self.shape.num_heads * self.shape.head_size
        stride, keys = width + 2 * of_keys, qkv + 4 * width
        return (
            width // of_keys, scale, qkv, stride, keys, stride, keys + 4 * of_keys, stride,
            attended, 0, 0, cos, sin,
        )  # fmt: skip


class SlotTable:
    """The slots of a step as a kernel reads them, layer by layer."""

    def __init__(self, kernel: Any, num_layers: int, rows: list[tuple[int, ...]]) -> None:
        """rows: a tuple for each slot: the address of its keys, the bytes from layer to layer and
        from keys to values, and then its fields from CAPACITY on"""
        self.num_slots = len(rows)
        described = np.array(rows, np.int64).reshape(len(rows), kernel.NUM_SLOT_FIELDS + 1)
        # (layers, slots, slot fields)
        self.fields = np.zeros((num_layers, len(rows), kernel.NUM_SLOT_FIELDS), np.int64)
        keys = described[:, 0] + np.arange(num_layers)[:, None] * described[:, 1]
        self.fields[:, :, kernel.KEYS] = keys
        self.fields[:, :, kernel.VALUES] = keys + described[:, 2]
        self.fields[:, :, kernel.CAPACITY :] = described[:, 3:]
        self.address, self.layer_bytes = self.fields.ctypes.data, self.fields.strides[0]

    def of_layer(self, layer: int) -> tuple[int, int]:
        """Return the number of slots and the address of their fields in one layer."""
        return self.num_slots, self.address + layer * self.layer_bytes

    def of_layers(self) -> np.ndarray:
        """Return the addresses of all layers: (layers,) int64."""
        return self.address + np.arange(len(self.fields)) * self.layer_bytes


def addresses_of(kept: Tensor) -> tuple[int, int, int]:
    """Return the address of the first layer's keys, and the bytes from layer to layer and from
    keys to values. kept: (layers, keys and values, ...) float32"""
    return kept.data_ptr(), 4 * kept.stride(0), 4 * kept.stride(1)


def cpu_attention_for(shape: KVShape, is_cross: bool, poisoned: bool) -> CpuAttentionBackend | None:
    """Return the compiled backend, or None where it cannot be compiled or disagrees with torch."""
    kernel = kernel_module("kernels.decode_attention")
    if kernel is None:
        log.warning("nothing can be compiled here, attention is slow")
        return None

    def attended(attention: ContiguousAttentionBackend) -> Iterator[Tensor]:
        draw = torch.Generator().manual_seed(0)
        slots = [attention.new_slot(num_rows) for num_rows in (1, 2)]
        for num_tokens, slot in zip((37, 5), slots, strict=True):
            slot.make_room(num_tokens + 1)
            sizes = (shape.num_heads, num_tokens, shape.head_size)
            slot.keep_crossed(torch.randn((shape.num_layers, 2, *sizes), generator=draw))
            slot.fill(0, *torch.randn((2, *sizes), generator=draw))
            slot.filled(num_tokens)
        attention.hold(slots)
        query, keys, values = torch.randn(
            (3, 3, shape.num_heads, 1, shape.head_size), generator=draw
        )
        scale = 1.0 / shape.head_size
        if is_cross:
            yield attention.attend(0, query, None, None, scale)
        else:
            yield attention.attend(0, query, keys, values, scale)

    def plain() -> Iterator[Tensor]:
        return attended(TorchAttentionBackend(shape, is_cross, poisoned))

    def compiled() -> Iterator[Tensor]:
        return attended(CpuAttentionBackend(kernel, shape, is_cross, poisoned))

    if not agrees("decode attention", compiled, plain):
        return None
    return CpuAttentionBackend(kernel, shape, is_cross, poisoned)
