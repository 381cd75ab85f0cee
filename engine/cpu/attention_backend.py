"""CpuAttentionBackend: what `kernel` and `prompt_kernel` compute, for slots of their own."""

from __future__ import annotations

from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from engine.attention.torch_backend import ContiguousAttentionBackend, with_contiguous_heads
from engine.cpu.captured_ops import captured_call
from engine.cpu.optional import compiled
from engine.kv_cache.contiguous import ContiguousKVCache, ContiguousSequenceCache


class CpuAttentionBackend(ContiguousAttentionBackend):
    is_repeatable = True

    def __init__(self, kernel: Any, kv_cache: ContiguousKVCache, is_cross: bool) -> None:
        """kv_cache: of sequences whose rows have `ancestors`"""
        super().__init__(kv_cache, is_cross)
        shape = kv_cache.shape
        self.kernel = kernel
        self.run = kernel.kernel()
        self.of_prompts = compiled("kernels.prefill_attention")
        self.num_rows = 0
        self.num_tokens = 0  # of rows and prompts
        self.nothing = KernelTable(kernel, shape.num_layers, [])
        self.rows_table = self.prompts_table = self.nothing
        # Keys and values of the last step's slots, and how many columns they had.
        self.held: list[tuple[ref[Tensor], int]] = []
        self.scratch = np.empty((0, 0), np.float32)
        self.unchanging: tuple[int, ...] = ()  # what a kernel is told first

    def _prepare_decode(self, slots: list[ContiguousSequenceCache]) -> None:
        self.prompts_table = self.nothing
        if slots and not self.is_cross and self._are_a_column_longer(slots):
            # Those of the last step, as most of the time.
            self.rows_table.fields[:, :, self.kernel.NUM_COLUMNS] += 1
            self.make_scratch_for(max(slot.length for slot in slots) + 1)
        else:
            self._tell(slots)
        self.held = [(ref(slot.kv), slot.length) for slot in slots]

    def _are_a_column_longer(self, slots: list[ContiguousSequenceCache]) -> bool:
        return len(slots) == len(self.held) and all(
            slot.kv is kept() and slot.length == length + 1
            for slot, (kept, length) in zip(slots, self.held, strict=True)
        )

    def _tell(self, slots: list[ContiguousSequenceCache]) -> None:
        self.num_rows = self.num_tokens = sum(slot.num_rows for slot in slots)
        first_row = 0
        rows: list[tuple[int, ...]] = []
        for slot in slots:
            ancestors: int = 0
            if self.is_cross:
                assert slot.encoded_kv is not None
                kept, num_columns, row_stride = slot.encoded_kv, slot.encoded_kv.shape[3], 0
                capacity = num_columns
            else:
                kept, num_columns, row_stride = slot.kv, slot.length + 1, slot.kv.stride(2)
                capacity = slot.capacity
                if slot.ancestors is not None:
                    ancestors = slot.ancestors.ctypes.data
            rows.append(
                (*addresses_of(kept), capacity, row_stride, slot.num_rows, num_columns, first_row,
                 ancestors)
            )  # fmt: skip
            first_row += slot.num_rows
            self.make_scratch_for(num_columns)
        self.rows_table = KernelTable(self.kernel, self.shape.num_layers, rows)

    def _prepare_prompts(self) -> None:
        if self.of_prompts is None or not self.prompts:
            return
        self.num_tokens = self.num_rows
        rows: list[tuple[int, ...]] = []
        for slot, (begin, end) in self.prompts:
            rows.append(
                (*addresses_of(slot.kv), slot.capacity, slot.kv.stride(2),
                 slot.num_prompt_rows, end - begin, self.num_rows + begin, 0)
            )  # fmt: skip
            self.num_tokens += end - begin
            self.make_scratch(self.of_prompts.scratch_width(end - begin, self.shape.head_size))
        self.prompts_table = KernelTable(self.kernel, self.shape.num_layers, rows)

    def make_scratch_for(self, num_columns: int) -> None:
        self.make_scratch(self.kernel.scratch_width(num_columns, self.shape.head_size))

    def make_scratch(self, num_floats: int) -> None:
        """For each thread so many."""
        num_threads = torch.get_num_threads()
        if self.scratch.shape[0] < num_threads or self.scratch.shape[1] < num_floats:
            self.scratch = np.empty((num_threads, 2 * num_floats), np.float32)
            self.unchanging = (
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
            keys, values = with_contiguous_heads(keys), with_contiguous_heads(values)
        captured_call(
            self._attend, layer, with_contiguous_heads(query), keys, values, scale, attended
        )
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
        new: tuple[int, ...] = (0, 0, 0, 0)
        if keys is not None and values is not None:
            new = (keys.data_ptr(), keys.stride(0), values.data_ptr(), values.stride(0))
        bias = (0, 0) if self.bias is None else (self.bias.data_ptr(), self.bias.shape[1])
        self.run(
            torch.get_num_threads(), *self.unchanging, *self.rows_table.of_layer(layer),
            query.shape[1] // self.shape.num_heads, scale, query.data_ptr(), query.stride(0),
            *new, attended.data_ptr(), *bias, 0, 0,
        )  # fmt: skip

    def can_attend_turned(self) -> bool:
        head_size = self.shape.head_size
        return self.of_prompts is not None and bool(self.of_prompts.can_attend(head_size))

    def attend_turned(
        self, layer: int, joined: Tensor, cos: Tensor, sin: Tensor, scale: float
    ) -> Tensor:
        """Keep what a layer makes of the rows that are held and of the prompts after them, and
        attend, all turned by their positions (`rotary`).

        joined:   (tokens, heads of queries, keys and values * head size) float32, contiguous;
                  those behind the last prompt fill up, and nothing is kept of them
        cos, sin: head size for each token
        returns:  (tokens, query heads * head size)
        """
        cos, sin = cos.contiguous(), sin.contiguous()
        width = joined.shape[1] - 2 * self.shape.num_heads * self.shape.head_size
        attended = torch.empty((len(joined), width))
        captured_call(self._attend_turned, layer, joined, cos, sin, scale, attended)
        return attended

    def _attend_turned(
        self, layer: int, joined: Tensor, cos: Tensor, sin: Tensor, scale: float, attended: Tensor
    ) -> None:
        """As above, into `attended`."""
        num_threads = torch.get_num_threads()
        told = self.told_turned(
            joined.data_ptr(), attended.shape[1], cos.data_ptr(), sin.data_ptr(), scale,
            attended.data_ptr(),
        )  # fmt: skip
        if self.num_rows:
            self.run(num_threads, *self.unchanging, *self.rows_table.of_layer(layer), *told)
        if self.prompts_table.num_slots:
            prompts = self.prompts_table.of_layer(layer)
            self.of_prompts.keep_prompts(num_threads, *self.unchanging, *prompts, *told)
            self.of_prompts.attend_prompts(num_threads, *self.unchanging, *prompts, *told)
            attended[self.num_tokens :] = 0

    def told_turned(
        self, joined: int, width: int, cos: int, sin: int, scale: float, attended: int
    ) -> tuple[float, ...]:
        """What a kernel is told after slots. width: of `attended`; joined, cos, sin, attended:
        addresses"""
        of_keys = self.shape.num_heads * self.shape.head_size
        stride, keys = width + 2 * of_keys, joined + 4 * width
        return (
            width // of_keys, scale, joined, stride, keys, stride, keys + 4 * of_keys, stride,
            attended, 0, 0, cos, sin,
        )  # fmt: skip


class KernelTable:
    """What a kernel is told of slots."""

    def __init__(self, kernel: Any, num_layers: int, rows: list[tuple[int, ...]]) -> None:
        """rows: of each slot what is told of it, with the bytes from layer to layer and from
        keys to values after the address of its keys"""
        self.num_slots = len(rows)
        told = np.array(rows, np.int64).reshape(len(rows), kernel.NUM_SLOT_FIELDS + 1)
        # (layers, slots, slot fields)
        self.fields = np.zeros((num_layers, len(rows), kernel.NUM_SLOT_FIELDS), np.int64)
        keys = told[:, 0] + np.arange(num_layers)[:, None] * told[:, 1]
        self.fields[:, :, kernel.KEYS] = keys
        self.fields[:, :, kernel.VALUES] = keys + told[:, 2]
        self.fields[:, :, kernel.CAPACITY :] = told[:, 3:]
        self.address, self.layer_bytes = self.fields.ctypes.data, self.fields.strides[0]

    def of_layer(self, layer: int) -> tuple[int, int]:
        return self.num_slots, self.address + layer * self.layer_bytes

    def of_layers(self) -> np.ndarray:
        """The addresses of all."""
        return self.address + np.arange(len(self.fields)) * self.layer_bytes


def addresses_of(kept: Tensor) -> tuple[int, int, int]:
    """kept: (layers, keys and values, ...) float32; the address, and the bytes from layer to
    layer and from keys to values"""
    return kept.data_ptr(), 4 * kept.stride(0), 4 * kept.stride(1)
