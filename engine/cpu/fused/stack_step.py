"""StackStep: base class of a step over a stack of layers as one table of compiled calls.

No call waits for Python, and the memory between calls is allocated once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from engine.cpu.fused.call_table import CallTable
from engine.cpu.fused.fused_stack import FusedStack
from engine.cpu.fused.layer_calls import LayerCalls
from engine.cpu.fused.step_buffers import Capacity, StepBuffers
from engine.cpu.kernels import gather_rows

Ints = Sequence[int]


class StackStep(ABC):
    """The common part of decoder steps and encoder passes.

    It holds a reference to every tensor whose address is in the table.
    """

    table: CallTable

    def __init__(self, stack: FusedStack) -> None:
        self.stack = stack
        self.capacity = Capacity()
        self.buffers: StepBuffers | None = None
        self.inputs: tuple[np.ndarray, ...] = ()

    @abstractmethod
    def make_table(self, buffers: StepBuffers) -> None:
        """Make `table` and everything else that depends on `capacity`."""

    def prepare(self, tokens: Ints, positions: Ints, num_logits: int | None = None) -> None:
        """Write the inputs of a step into the table.

        num_logits: the number of tokens whose logits are requested; None: all
        raises:     IndexError for a token id without an embedding
        """
        ids = np.array(tokens)
        places = np.array(positions if self.stack.rotary_kinds else (0,))
        num_logits = len(ids) if num_logits is None else num_logits
        if not 0 <= ids.min() <= ids.max() < len(self.stack.embedding):
            raise IndexError("a token that the model has no embedding of")
        self._reserve(
            Capacity(len(ids), num_logits, int(places.max()) + 1, torch.get_num_threads())
        )
        calls, self.inputs = self.table.calls, (ids, places)
        calls[self.embed_at, 1 + gather_rows.INDEX] = ids.ctypes.data
        calls[self.rotations_at, 1 + gather_rows.INDEX] = places.ctypes.data
        for (at, arguments, rows_a_token), num_tokens in zip(
            self.row_counts, (len(ids), num_logits), strict=True
        ):
            calls[at, arguments] = num_tokens * rows_a_token

    def _reserve(self, needed: Capacity) -> None:
        """Allocate larger buffers, and a new table with their addresses, if the step needs them."""
        if self.capacity.holds(needed):
            return
        self.capacity = self.capacity.grown(needed)
        self.buffers = None  # frees the old buffers before the new ones are allocated
        self.buffers = StepBuffers(self.stack, self.capacity)
        self.make_table(self.buffers)

    def begin_calls(self, buffers: StepBuffers) -> LayerCalls:
        """Return a LayerCalls with the calls before the first layer."""
        calls = LayerCalls(self.stack, buffers)
        self.embed_at, self.rotations_at = calls.add_embedding()
        return calls

    def end_calls(self, calls: LayerCalls) -> None:
        self.table = CallTable(calls.calls)
        self.row_counts = [
            np.array(calls.row_counts[each], np.int64).reshape(-1, 3).T for each in (False, True)
        ]
