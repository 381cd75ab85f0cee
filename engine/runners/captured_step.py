"""CapturedStep: a decode step over contiguous slots, captured once for each number of rows.

How far back a row looks is set in the attention backend before, and is no part of the capture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.cpu.captured_ops import OpCapturer
from engine.runners.cuda_graphs import GraphCache

# A capture costs what one or two dozen replays gain. While a queue runs empty, each number of
# rows is there for a few steps.
WORTH_AFTER = 8


class CapturedStep:
    """Runs decode steps, as they are written or as captured."""

    def __init__(
        self,
        forward: Callable[[Tensor, Tensor], Tensor],
        device: torch.device,
        is_repeatable: bool,
    ) -> None:
        """forward:       from tokens and positions, (rows,) int64 each, to (rows, vocab) logits
        is_repeatable: whether it can be captured; if not, every step runs as it is written
        """
        self.forward = forward
        self.device = device
        self.graphs: GraphCache[int, Tensor] = GraphCache(
            OpCapturer() if is_repeatable else None, worth_after=WORTH_AFTER
        )
        self.inputs: dict[int, Tensor] = {}  # by rows

    def run(self, tokens: list[int], positions: list[int]) -> Tensor:
        """Return (rows, vocab) logits, overwritten by the next step."""
        num_rows = len(tokens)
        if num_rows not in self.inputs:
            self.inputs[num_rows] = torch.zeros((2, num_rows), dtype=torch.int64)
        self.inputs[num_rows].numpy()[:] = tokens, positions
        inputs = self.inputs[num_rows].to(self.device)  # on a CPU, itself
        return self.graphs.run(num_rows, lambda: self.forward(inputs[0], inputs[1]))
