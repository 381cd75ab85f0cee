"""GraphCache: records each step shape once and replays it as a whole.

On a GPU a recording is a CUDA graph, on a CPU a list of captured calls.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

from engine.device_errors import is_beyond_repair, is_out_of_memory
from engine.logging import error_location

log = logging.getLogger(__name__)

Shape = TypeVar("Shape", bound=Hashable)
Result = TypeVar("Result")
Step = Callable[[], Result]
# Runs a step; returns its result, and a function that repeats it.
Record = Callable[[Step[Result]], tuple[Result, Step[Result]]]

MAX_GRAPHS = 64  # each keeps some megabytes
NUM_WARM_UPS = 2  # what libraries set up at their first call cannot be recorded


class GraphCache(Generic[Shape, Result]):
    """The most recently used recordings, at most `max_graphs`."""

    def __init__(
        self, record: Record[Result] | None, max_graphs: int = MAX_GRAPHS, worth_after: int = 1
    ) -> None:
        """record:      None: nothing is recorded
        worth_after: how often a shape must occur before it is recorded, since a rare one is not
                     worth it
        """
        self.record = record
        self.worth_after = worth_after
        self.max_graphs = max_graphs
        self.recorded: dict[Shape, Step[Result]] = {}  # the one used last is the last
        self.met: Counter[Shape] = Counter()

    def run(self, shape: Shape, step: Step[Result]) -> Result:
        """Run a step, from a recording if it is worth one.

        step: does the same work for the same shape, in tensors at fixed addresses; it may be run
              several times
        """
        again = self.recorded.pop(shape, None)
        if again is not None:
            self.recorded[shape] = again
            return again()
        if self.record is None or self.met[shape] < self.worth_after:
            self.met[shape] += 1
            return step()
        return self._recorded(self.record, shape, step)

    def _recorded(self, record: Record[Result], shape: Shape, step: Step[Result]) -> Result:
        try:
            result, again = record(step)
        except Exception as error:
            if is_beyond_repair(error) or is_out_of_memory(error):
                raise
            written = step()  # what fails here too is no fault of the recording
            log.warning(
                "recording failed, steps run eagerly", extra={"error": error_location(error)}
            )
            self.record = None
            return written
        self.recorded[shape] = again
        if len(self.recorded) > self.max_graphs:
            del self.recorded[next(iter(self.recorded))]
        return result


class Recorder:
    """Records CUDA graphs that share one memory pool.

    No two run at once, and the result of a step is used before the next one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)

    def __call__(self, step: Step[None]) -> tuple[None, Step[None]]:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for _ in range(NUM_WARM_UPS):
                step()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        # Calls of other threads of the process are no part of it.
        with torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
        ):
            step()
        graph.replay()
        return None, graph.replay


def recorder_for(device: torch.device) -> Recorder | None:
    """The recorder for a CUDA device; None for other devices."""
    return Recorder(device) if device.type == "cuda" else None
