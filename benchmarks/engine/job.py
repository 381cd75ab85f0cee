"""Job: the input of one side and its output, each a line of JSON on the standard streams."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self

from benchmarks.engine.workload import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    folder: str  # the checkpoint, as save_pretrained writes it
    how: str  # the way of serving, if the side's module has several
    requests: list[Request]
    rows: int = 16  # requests in flight, or in a batch
    threads: int = 2
    device: str = "cpu"
    dtype: str = "float32"
    beams: int = 1
    packed: bool = False  # weights packed by oneDNN
    quantization: str = "none"
    feed: str = "drain"  # drain: all at once; steady: `num_waiting` wait at all times
    num_waiting: int = 32
    num_alone: int = 16  # requests served one at a time, of all classes of length
    num_batches: int | None = None  # static batches that run, evenly spaced; None: all

    @classmethod
    def from_stdin(cls) -> Self:
        data = json.load(sys.stdin)
        data["requests"] = [Request(tuple(prompt), new) for prompt, new in data["requests"]]
        return cls(**data)

    def to_json(self) -> str:
        data = asdict(self)
        data["requests"] = [[each.prompt, each.num_new] for each in self.requests]
        return json.dumps(data)


@dataclass(slots=True, kw_only=True)
class Measured:
    """The measurements of one side. Only requested tokens are counted."""

    seconds: float
    cpu_seconds: float
    num_tokens: int
    num_requests: int
    first_seconds: float  # until the first request finished
    occupancy: float | None = None  # the mean share of rows in use, over the steps
    peak_rss_bytes: int = 0  # of the process that holds the model
    versions: dict[str, str] | None = None
    answers: dict[int, list[int]] | None = None  # by the number of the request


def answer(run: Callable[[Job], Measured]) -> None:
    """Read a Job, run the side, print a Measured. Output of libraries goes to standard error."""
    job = Job.from_stdin()
    out = os.dup(1)
    os.dup2(2, 1)
    measured: dict[str, Any] = asdict(run(job))
    with os.fdopen(out, "w") as file:
        print(json.dumps(measured), file=file)


def peak_rss_bytes(pid: int | str = "self") -> int:
    """Return the peak memory of a process."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        (line,) = [line for line in file if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
