"""Record: one measurement, a line of JSON in a file that several runs may share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    run: str  # one run of the command; only measurements of the same run are compared
    round: int
    model: str
    side: str
    rows: int
    feed: str
    beams: int
    dtype: str
    device: str
    threads: int
    clock: str
    speed: float  # requested tokens per second
    seconds: float
    num_tokens: int
    num_requests: int  # served requests
    num_drawn: int  # requests of the workload
    first_seconds: float
    occupancy: float | None = None
    num_compared: int = 0  # answers that the side `one` gave too
    num_identical: int = 0
    tokens_agreeing: float | None = None  # share of tokens before the first that differs
    peak_rss_bytes: int = 0
    allowed_bytes: int = 0  # weights, keys and values, and 500 MB
    limit: float | None = None  # tokens per second, at the machine's peak in this round
    versions: dict[str, str] = field(default_factory=dict)

    def to_line(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Self:
        return cls(**json.loads(line))


def read(paths: Iterable[Path]) -> list[Record]:
    return [
        Record.from_line(line)
        for path in paths
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def append(path: Path, record: Record) -> None:
    """Append a measurement at once, so that an interrupted run keeps the earlier ones."""
    with path.open("a", encoding="utf-8") as file:
        print(record.to_line(), file=file)
