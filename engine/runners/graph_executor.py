"""GraphExecutor: decode steps in a few shapes, whose inputs are written into fixed tensors.

A GPU that launches many small kernels one by one is idle most of the time. A CUDA graph launches
them at once, but always does the same work at the same addresses. So the rows of a step, and the
tokens that they attend to, are padded to the next of a few sizes, and the data that differs between
steps of one shape is written into the same tensors first. A step reads no value back to the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from engine.attention.base import DecodeForward
from engine.attention.paged_backend import PagedAttentionBackend
from engine.kv_cache.paged import (
    PagedKVCache,
    PagedSequenceCache,
    next_power_of_two,
    padded_to_pages,
)
from engine.kv_cache.planning.memory_planner import MAX_GATHERED_TOKENS
from engine.runners.cuda_graphs import GraphCache, recorder_for
from engine.runners.step_executor import EagerExecutor, PrefillForward

# The lines of `StepInputs.numbers`, with a number for each row:
ROW, LENGTH, NUM_ENCODED, TOKEN = range(4)  # in the cache; tokens before this one; of the prompt


@dataclass(frozen=True, slots=True)
class StepShape:
    num_rows: int
    num_tokens: int  # of a row with the new one, at most
    num_encoded_tokens: int  # of a prompt, at most; 0 without an encoder

    @classmethod
    def of(cls, caches: list[PagedSequenceCache]) -> StepShape:
        """The smallest shape that fits these sequences."""
        return cls(
            next_power_of_two(sum(each.num_rows for each in caches)),
            padded_to_pages(max(each.length for each in caches) + 1),
            padded_to_pages(max(each.num_encoded_tokens for each in caches)),
        )

    @property
    def num_gathered_tokens(self) -> int:
        return self.num_rows * max(self.num_tokens, self.num_encoded_tokens)


class StepInputs:
    """The tensors that differ between steps of one shape."""

    def __init__(self, shape: StepShape, kv_cache: PagedKVCache) -> None:
        device = kv_cache.shape.device
        self.kv_cache = kv_cache
        self.numbers = torch.zeros((4, shape.num_rows), dtype=torch.int64, device=device)
        # (groups of layers, rows, tokens) int64: token slots
        sizes = (len(kv_cache.groups), shape.num_rows)
        self.slots = self.numbers.new_zeros((*sizes, shape.num_tokens))
        self.encoded_slots = self.numbers.new_zeros((*sizes, shape.num_encoded_tokens))
        # Copied from pinned memory, a step's numbers travel while the host goes on.
        is_cuda = device.type == "cuda"
        self.staged = torch.zeros((4, shape.num_rows), dtype=torch.int64, pin_memory=is_cuda)
        self.was_copied = torch.cuda.Event() if is_cuda else None

    def write(self, caches: list[PagedSequenceCache], tokens: list[int]) -> None:
        """Write the inputs of a step. tokens: the newest token of each row"""
        if self.was_copied is not None:
            # The copy has ended long ago, unless a step failed before it read a result back.
            self.was_copied.synchronize()
        staged = self.staged.numpy()
        # Rows that pad the step read and write the scratch token slot.
        staged[:] = [[self.kv_cache.max_rows], [0], [1], [0]]
        staged[TOKEN, : len(tokens)] = tokens
        at = 0
        for cache in caches:
            rows = slice(at, at + cache.num_rows)
            staged[ROW, rows] = cache.rows
            staged[LENGTH, rows] = cache.length
            staged[NUM_ENCODED, rows] = cache.num_encoded_tokens
            at = rows.stop
        self.numbers.copy_(self.staged, non_blocking=True)
        if self.was_copied is not None:
            self.was_copied.record()
        for table, slots in (
            (self.kv_cache.slot_table, self.slots),
            (self.kv_cache.encoded_slot_table, self.encoded_slots),
        ):
            width = slots.shape[2]
            table.widen(width)
            torch.index_select(table.slots[:, :, :width], 1, self.numbers[ROW], out=slots)


class GraphExecutor(EagerExecutor):
    mixes_prefill = False

    def __init__(
        self,
        decode: DecodeForward,
        prefill: PrefillForward,
        attention: PagedAttentionBackend,
        cross_attention: PagedAttentionBackend | None = None,
    ) -> None:
        """decode: must not read a value of its inputs back"""
        self.attention = attention
        self.cross_attention = cross_attention
        self.kv_cache = attention.kv_cache
        device = self.kv_cache.shape.device
        super().__init__(decode, prefill, device)
        self.graphs: GraphCache[StepShape, None] = GraphCache(recorder_for(device))
        self.max_gathered_tokens = MAX_GATHERED_TOKENS
        self.inputs: dict[StepShape, StepInputs] = {}
        self.logits: Tensor | None = None  # (most rows, vocab), for all shapes

    def decode(self, caches: list[Any], tokens: list[int]) -> Tensor:
        parts = split_by_length(caches, self.max_gathered_tokens)
        if len(parts) == 1:
            return self._decode_part(caches, tokens)
        firsts = list(accumulate((each.num_rows for each in caches), initial=0))
        logits: Tensor | None = None
        for part in parts:
            rows = [row for at in part for row in range(firsts[at], firsts[at + 1])]
            some = self._decode_part([caches[at] for at in part], [tokens[row] for row in rows])
            if logits is None:
                logits = some.new_empty(len(tokens), some.shape[1])
            logits[torch.tensor(rows, device=some.device)] = some
        assert logits is not None
        return logits

    def _decode_part(self, caches: list[PagedSequenceCache], tokens: list[int]) -> Tensor:
        shape = StepShape.of(caches)
        if shape not in self.inputs:
            self.inputs[shape] = StepInputs(shape, self.kv_cache)
        inputs = self.inputs[shape]
        inputs.write(caches, tokens)
        if self.logits is None:
            logits = self.forward(inputs)
            max_rows = next_power_of_two(self.kv_cache.max_rows)
            self.logits = logits.new_empty(max_rows, logits.shape[1])
        # It may run twice: it writes the same values each time.
        self.graphs.run(shape, lambda: self._compute(inputs))
        return self.logits[: len(tokens)]

    def _compute(self, inputs: StepInputs) -> None:
        assert self.logits is not None
        logits = self.forward(inputs)
        self.logits[: len(logits)] = logits

    def forward(self, inputs: StepInputs) -> Tensor:
        """The recorded part of a step. Returns logits, (rows, vocab)."""
        numbers = inputs.numbers
        self.attention.prepare_rows(inputs.slots, numbers[LENGTH])
        if self.cross_attention is not None:
            self.cross_attention.prepare_rows(inputs.encoded_slots, numbers[NUM_ENCODED] - 1)
        return self.decode_forward(numbers[TOKEN], numbers[LENGTH])


def split_by_length(
    caches: Sequence[PagedSequenceCache], max_gathered_tokens: int
) -> list[list[int]]:
    """Group the indices of sequences that share a step: all, or those of similar length."""
    everyone = list(range(len(caches)))
    if StepShape.of(list(caches)).num_gathered_tokens <= max_gathered_tokens:
        return [everyone]
    everyone.sort(key=lambda at: max(caches[at].length, caches[at].num_encoded_tokens))
    parts: list[list[int]] = [[]]
    for at in reversed(everyone):
        part = [*parts[-1], at]
        shape = StepShape.of([caches[each] for each in part])
        if parts[-1] and shape.num_gathered_tokens > max_gathered_tokens:
            parts.append([at])
        else:
            parts[-1] = part
    return parts
