"""CpuAttentionBackend: compiled attention to contiguous caches, decode and prefill."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from engine.attention.base import Scoring
from engine.attention.torch_backend import (
    ContiguousAttentionBackend,
    TorchAttentionBackend,
    with_contiguous_heads,
)
from engine.cpu.captured_ops import captured_call
from engine.cpu.self_test import agrees, kernel_module
from engine.kv_cache.base import KVShape
from engine.kv_cache.contiguous import ContiguousKVCache, ContiguousSequenceCache
from engine.kv_cache.layer_group import LayerNumbers

log = logging.getLogger(__name__)

ANCESTOR_BYTES = 4


class CpuAttentionBackend(ContiguousAttentionBackend):
    """Attention by one compiled call for each layer, for caches of any lengths."""

    is_repeatable = True

    def __init__(self, kernel: Any, kv_cache: ContiguousKVCache, is_cross: bool) -> None:
        """kernel:   the module `kernels.decode_attention`
        kv_cache: its sequences' rows have `ancestors`
        is_cross: whether rows attend to the encoder's output
        """
        assert kv_cache.by_ancestors
        super().__init__(kv_cache, is_cross)
        shape = kv_cache.shape
        self.kernel = kernel
        self.prefill_kernel = kernel_module("kernels.prefill_attention")
        self.num_rows = 0
        self.no_caches = CacheTable(kernel, shape, [])
        self.rows_table = self.prompts_table = self.no_caches
        # The last step's caches, how often their memory had moved, and their lengths.
        self.last_step: list[tuple[ref[ContiguousSequenceCache], int, int]] = []
        self.scratch = np.empty((0, 0), np.float32)
        self.first_arguments: tuple[int, ...] = ()  # of every kernel

    def _prepare_decode(self, caches: list[ContiguousSequenceCache]) -> None:
        self.prompts_table = self.no_caches
        if caches and not self.is_cross and self._are_a_token_longer(caches):
            # The caches of the last step, as most of the time.
            self.rows_table.append_column()
            self.make_scratch_for(max(cache.length for cache in caches) + 1)
        else:
            self._describe(caches)
        self.last_step = [(ref(cache), cache.num_moves, cache.length) for cache in caches]

    def _are_a_token_longer(self, caches: list[ContiguousSequenceCache]) -> bool:
        return len(caches) == len(self.last_step) and all(
            cache is before() and cache.num_moves == num_moves and cache.length == length + 1
            for cache, (before, num_moves, length) in zip(caches, self.last_step, strict=True)
        )

    def _describe(self, caches: list[ContiguousSequenceCache]) -> None:
        first_rows = list(accumulate((cache.num_rows for cache in caches), initial=0))
        self.num_rows = first_rows.pop()
        num_columns = [
            num_encoded_columns(cache) if self.is_cross else cache.length + 1 for cache in caches
        ]
        self.make_scratch_for(max(num_columns, default=0))
        if self.is_cross:
            rows: list[tuple[int, ...]] = [
                (*addresses_of(cache.encoded_kv), columns, 0, cache.num_rows, columns, first_row, 0)
                for cache, columns, first_row in zip(caches, num_columns, first_rows, strict=True)
            ]
            self.rows_table = CacheTable(self.kernel, self.shape, [(slice(None), rows)])
            return
        parts: Parts = [
            (
                groups[0].layers,
                [
                    (*addresses_of(group.kv), group.capacity, group.kv.stride(2), cache.num_rows,
                     columns - group.first, first_row, address_of(group.ancestors))
                    for group, cache, columns, first_row in zip(
                        groups, caches, num_columns, first_rows, strict=True
                    )
                ],
            )
            for groups in zip(*(cache.groups for cache in caches), strict=True)
        ]  # fmt: skip
        self.rows_table = CacheTable(self.kernel, self.shape, parts, self.windows)

    def _prepare_prompts(self) -> None:
        if self.prefill_kernel is None or not self.prompts:
            return
        parts: Parts = [
            (
                groups[0].layers,
                [
                    (*addresses_of(group.kv), group.capacity, group.kv.stride(2),
                     cache.num_prompt_rows, cache.length + end - begin - group.first,
                     self.num_rows + begin, cache.length - group.first)
                    for group, (cache, (begin, end)) in zip(groups, self.prompts, strict=True)
                ],
            )
            for groups in zip(*(cache.groups for cache, _ in self.prompts), strict=True)
        ]  # fmt: skip
        longest = max(cache.length + end - begin for cache, (begin, end) in self.prompts)
        self.make_scratch(self.prefill_kernel.scratch_width(longest, self.shape.head_size))
        self.prompts_table = CacheTable(self.kernel, self.shape, parts)

    def make_scratch_for(self, num_columns: int) -> None:
        self.make_scratch(self.kernel.scratch_width(num_columns, self.shape.head_size))

    def make_scratch(self, num_floats: int) -> None:
        """Allocate at least `num_floats` of scratch for each thread."""
        num_threads = torch.get_num_threads()
        if self.scratch.shape[0] < num_threads or self.scratch.shape[1] < num_floats:
            self.scratch = np.empty((num_threads, 2 * num_floats), np.float32)
            self.first_arguments = (
                self.shape.num_heads, self.shape.head_size, self.scratch.ctypes.data,
                self.scratch.shape[1],
            )  # fmt: skip

    def attend(
        self,
        layer: int,
        query: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
        scoring: Scoring,
    ) -> Tensor:
        num_rows, num_heads, _, head_size = query.shape
        assert num_rows == self.num_rows
        assert scoring.window == (self.windows[layer] if self.windows else None)
        attended = torch.empty((num_rows, 1, num_heads, head_size))
        if keys is not None and values is not None:
            keys, values = with_contiguous_heads(keys), with_contiguous_heads(values)
        sinks = None if scoring.sinks is None else scoring.sinks.float().contiguous()
        captured_call(
            self._attend, layer, with_contiguous_heads(query), keys, values, scoring.scale,
            scoring.softcap or 0.0, sinks, attended,
        )  # fmt: skip
        return attended

    def _attend(
        self,
        layer: int,
        query: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
        scale: float,
        softcap: float,
        sinks: Tensor | None,
        attended: Tensor,
    ) -> None:
        """Attend like `attend`, into `attended`: (rows, 1, query heads, head size).

        softcap: 0: none
        sinks:   (query heads,) float32
        """
        new: tuple[int, ...] = (0, 0, 0, 0)
        if keys is not None and values is not None:
            new = (keys.data_ptr(), keys.stride(0), values.data_ptr(), values.stride(0))
        bias = (0, 0) if self.bias is None else (self.bias.data_ptr(), self.bias.shape[1])
        self.kernel.run(
            torch.get_num_threads(), *self.first_arguments, *self.rows_table.of_layer(layer),
            query.shape[1] // self.shape.num_heads, scale, query.data_ptr(), query.stride(0),
            *new, attended.data_ptr(), *bias, 0, 0, 0 if sinks is None else sinks.data_ptr(),
            softcap, 0, self.kernel.UNBOUNDED,
        )  # fmt: skip

    def has_prefill(self) -> bool:
        """Return whether the compiled prefill supports this head size."""
        head_size = self.shape.head_size
        return self.prefill_kernel is not None and bool(self.prefill_kernel.can_attend(head_size))

    def merged_arguments(
        self, qkv: int, width: int, cos: int, sin: int, scoring: Scoring, attended: int
    ) -> tuple[float, ...]:
        """Return a kernel's arguments after those of the caches, for merged q, k and v.

        The kernel applies the rotary embedding.

        qkv:      the address of (tokens, heads of queries, keys and values * head size)
        width:    the width of the queries and of `attended`
        cos, sin: the addresses of (tokens, head size), by each token's position
        scoring:  must have no sinks
        attended: the address of the result, (tokens, width)
        """
        assert scoring.sinks is None
        of_keys = self.shape.num_heads * self.shape.head_size
        window = self.kernel.UNBOUNDED if scoring.window is None else scoring.window
        stride, keys = width + 2 * of_keys, qkv + 4 * width
        return (
            width // of_keys, scoring.scale, qkv, stride, keys, stride, keys + 4 * of_keys, stride,
            attended, 0, 0, cos, sin, 0, scoring.softcap or 0.0, 0, window,
        )  # fmt: skip


Parts = list[tuple[LayerNumbers, list[tuple[int, ...]]]]
"""The caches of a step in some layers and then in others: a tuple for each cache: the address of
its keys, the bytes from layer to layer and from keys to values, and its fields from CAPACITY on."""


class CacheTable:
    """The caches of a step as a kernel reads them, layer by layer."""

    def __init__(
        self,
        kernel: Any,
        shape: KVShape,
        parts: Parts,
        windows: tuple[int | None, ...] = (),
    ) -> None:
        """windows: of each layer; (): no layer has one"""
        self.kernel = kernel
        num_layers, self.column_bytes = shape.num_layers, shape.head_size * shape.dtype.itemsize
        self.num_caches = len(parts[0][1]) if parts else 0
        # (layers, caches, cache fields)
        self.fields = np.zeros((num_layers, self.num_caches, kernel.NUM_CACHE_FIELDS), np.int64)
        for layers, rows in parts:
            described, fields = np.array(rows, np.int64), self.fields[layers]
            keys = described[:, 0] + np.arange(len(fields))[:, None] * described[:, 1]
            fields[:, :, kernel.KEYS] = keys
            fields[:, :, kernel.VALUES] = keys + described[:, 2]
            fields[:, :, kernel.CAPACITY :] = described[:, 3:]
            self.fields[layers] = fields
        self.address, self.layer_bytes = self.fields.ctypes.data, self.fields.strides[0]
        self.windows: np.ndarray | None = None  # (layers, 1) int64
        if any(each is not None for each in windows):
            self.windows = np.array(
                [[kernel.UNBOUNDED if each is None else each] for each in windows]
            )
            columns = self.fields[:, :, kernel.NUM_COLUMNS]
            self._leave_out(np.maximum(columns - self.windows, 0))

    def append_column(self) -> None:
        """Count one more token in each cache, in every layer."""
        self.fields[:, :, self.kernel.NUM_COLUMNS] += 1
        if self.windows is not None:
            has_left = self.fields[:, :, self.kernel.NUM_COLUMNS] > self.windows
            self._leave_out(has_left.astype(np.int64))

    def _leave_out(self, num_columns: np.ndarray) -> None:
        """Let caches start `num_columns` later, (layers, caches) int64."""
        kernel, fields = self.kernel, self.fields
        fields[:, :, kernel.NUM_COLUMNS] -= num_columns
        for field in (kernel.KEYS, kernel.VALUES):
            fields[:, :, field] += num_columns * self.column_bytes
        has_ancestors = fields[:, :, kernel.ANCESTORS] != 0
        fields[:, :, kernel.ANCESTORS] += num_columns * ANCESTOR_BYTES * has_ancestors

    def of_layer(self, layer: int) -> tuple[int, int]:
        """Return the number of caches and the address of their fields in one layer."""
        return self.num_caches, self.address + layer * self.layer_bytes

    def of_layers(self) -> np.ndarray:
        """Return the addresses of all layers: (layers,) int64."""
        return self.address + np.arange(len(self.fields)) * self.layer_bytes


def num_encoded_columns(cache: ContiguousSequenceCache) -> int:
    assert cache.encoded_kv is not None
    return cache.encoded_kv.shape[3]


def address_of(array: np.ndarray | None) -> int:
    return 0 if array is None else array.ctypes.data


def addresses_of(kv: Tensor | None) -> tuple[int, int, int]:
    """Return the address of the first layer's keys, and the strides in bytes of layers and values.

    The second stride is from keys to values. kv: (layers, 2, ...) float32
    """
    assert kv is not None
    return kv.data_ptr(), 4 * kv.stride(0), 4 * kv.stride(1)


def decode_kernel_for(shape: KVShape) -> Any:
    """Return the compiled kernel for contiguous caches; None if it does not agree with torch."""
    if shape.device.type != "cpu" or shape.dtype != torch.float32:
        return None
    kernel = kernel_module("kernels.decode_attention")
    if kernel is None:
        log.warning("nothing can be compiled here, attention is slow")
        return None

    def compiled() -> Iterator[Tensor]:
        kv_cache = ContiguousKVCache(shape, by_ancestors=True)
        for is_cross, is_usual in TRIALS:
            yield trial_output(CpuAttentionBackend(kernel, kv_cache, is_cross), is_usual)

    def plain() -> Iterator[Tensor]:
        kv_cache = ContiguousKVCache(shape)
        for is_cross, is_usual in TRIALS:
            yield trial_output(TorchAttentionBackend(kv_cache, is_cross), is_usual)

    return kernel if agrees("decode attention", compiled, plain) else None


TRIALS = ((False, True), (True, True), (False, False))  # is_cross, is_usual


def trial_output(attention: ContiguousAttentionBackend, is_usual: bool) -> Tensor:
    """Run a step over random sequences, the same ones for every backend.

    is_usual: without a window, a soft cap and sinks
    returns:  (rows, 1, query heads, head size)
    """
    draw = torch.Generator().manual_seed(0)
    shape = attention.shape
    scoring = Scoring(1.0 / shape.head_size)
    if not is_usual:
        attention.windows = (20,) * shape.num_layers
        sinks = torch.randn(shape.num_heads, generator=draw)
        scoring = replace(scoring, window=20, softcap=0.5, sinks=sinks)
    caches = [attention.kv_cache.new_sequence(num_rows) for num_rows in (1, 2)]
    for num_tokens, cache in zip((37, 5), caches, strict=True):
        cache.reserve(num_tokens + 1)
        sizes = (shape.num_heads, num_tokens, shape.head_size)
        cache.write_encoded(torch.randn((shape.num_layers, 2, *sizes), generator=draw))
        cache.write_prompt(0, *torch.randn((2, *sizes), generator=draw))
        cache.commit_prompt(num_tokens)
    attention.prepare(caches)
    query, keys, values = torch.randn((3, 3, shape.num_heads, 1, shape.head_size), generator=draw)
    if attention.is_cross:
        return attention.attend(0, query, None, None, scoring)
    return attention.attend(0, query, keys, values, scoring)
