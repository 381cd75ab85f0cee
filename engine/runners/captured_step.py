"""CapturedExecutor: CPU decode steps, captured once for each number of rows and replayed.

The lengths of sequences are set in the attention backend before a replay, outside of the capture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.attention.base import DecodeForward
from engine.cpu.captured_ops import OpCapturer
from engine.runners.cuda_graphs import GraphCache
from engine.runners.step_executor import (
    EagerExecutor,
    PrefillForward,
    row_lengths,
)

# A capture costs what one or two dozen replays gain. While a queue runs empty, each number of
# rows is there for a few steps.
WORTH_AFTER = 8


class CapturedExecutor(EagerExecutor):
    """Prefills eagerly, and captures decode steps whose number of rows recurs often."""

    def __init__(
        self, decode: DecodeForward, prefill: PrefillForward, device: torch.device
    ) -> None:
        super().__init__(decode, prefill, device)
        self.graphs: GraphCache[int, Tensor] = GraphCache(OpCapturer(), worth_after=WORTH_AFTER)
        self.inputs: dict[int, Tensor] = {}  # (2, rows) int64, by the number of rows

    def decode(self, caches: list[Any], tokens: list[int]) -> Tensor:
        num_rows = len(tokens)
        if num_rows not in self.inputs:
            self.inputs[num_rows] = torch.zeros((2, num_rows), dtype=torch.int64)
        inputs = self.inputs[num_rows]
        inputs.numpy()[:] = tokens, row_lengths(caches)
        return self.graphs.run(num_rows, lambda: self.decode_forward(inputs[0], inputs[1]))
