"""Graphs: what a GPU does in a step, recorded once for each shape and launched as a whole.

Elsewhere than on a GPU nothing is recorded, and every step is run as it is written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

from worker.engine.exact import is_beyond_repair, is_out_of_memory
from worker.engine.logs import whereabouts

log = logging.getLogger(__name__)

Shape = TypeVar("Shape", bound=Hashable)
Step = Callable[[], None]

MAX_GRAPHS = 64  # each keeps some megabytes
NUM_WARM_UPS = 2  # what libraries set up at their first call cannot be recorded


class Graphs(Generic[Shape]):
    """Those used last, at most `max_graphs`."""

    def __init__(self, record: Callable[[Step], Step] | None, max_graphs: int = MAX_GRAPHS) -> None:
        """record: runs a step, and returns what does it again; None: nothing is recorded"""
        self.record = record
        self.max_graphs = max_graphs
        self.recorded: dict[Shape, Step] = {}  # the one used last is the last

    def run(self, shape: Shape, step: Step) -> None:
        """step: does the same work for the same shape, in tensors that stay where they are"""
        again = self.recorded.pop(shape, None)
        if again is None:
            again = self._recorded(step)
        if again is None:
            step()
            return
        self.recorded[shape] = again
        if len(self.recorded) > self.max_graphs:
            del self.recorded[next(iter(self.recorded))]
        again()

    def _recorded(self, step: Step) -> Step | None:
        if self.record is None:
            return None
        try:
            return self.record(step)
        except Exception as error:
            if is_beyond_repair(error) or is_out_of_memory(error):
                raise
            log.warning("no graphs, steps are run as written", extra={"error": whereabouts(error)})
        self.record = None
        return None


class Recorder:
    """Of CUDA. All recordings share one pool of memory: no two run at once, and what a step
    leaves is used up before the next."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)

    def __call__(self, step: Step) -> Step:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for _ in range(NUM_WARM_UPS):
                step()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        # What other threads of the process ask of the device meanwhile is no part of it.
        with torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
        ):
            step()
        return graph.replay


def recorder_for(device: torch.device) -> Recorder | None:
    return Recorder(device) if device.type == "cuda" else None
