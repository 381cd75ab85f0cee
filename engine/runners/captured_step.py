"""CapturedStep: a step of slots of their own, recorded once for each number of rows.

How far back a row looks is told to the attention by itself, and is on no tape.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.cpu.captured_ops import OpCapturer
from engine.runners.cuda_graphs import GraphCache

# CapturedOps costs what playing gains in a dozen steps or two. While a queue runs empty, each
# number of rows is there for a few.
WORTH_AFTER = 8


class CapturedStep:
    def __init__(
        self,
        forward: Callable[[Tensor, Tensor], Tensor],
        device: torch.device,
        is_repeatable: bool,
    ) -> None:
        """forward:       of tokens and positions, (rows,) int64 each, to (rows, vocab) logits
        is_repeatable: whether it can be recorded; else every step is run as it is written
        """
        self.forward = forward
        self.device = device
        self.graphs: GraphCache[int, Tensor] = GraphCache(
            OpCapturer() if is_repeatable else None, worth_after=WORTH_AFTER
        )
        self.inputs: dict[int, Tensor] = {}  # by rows

    def run(self, tokens: list[int], positions: list[int]) -> Tensor:
        """Returns (rows, vocab) logits, good until the next step."""
        num_rows = len(tokens)
        if num_rows not in self.inputs:
            self.inputs[num_rows] = torch.zeros((2, num_rows), dtype=torch.int64)
        self.inputs[num_rows].numpy()[:] = tokens, positions
        inputs = self.inputs[num_rows].to(self.device)  # on a CPU, itself
        return self.graphs.run(num_rows, lambda: self.forward(inputs[0], inputs[1]))
