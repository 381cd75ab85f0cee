"""Progress: the work that an engine has done so far, and its queues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The lengths of the engine's queues, and totals since the start."""

    num_waiting: int = 0  # requests
    num_running: int = 0  # requests
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_found_tokens: int = 0  # of these, from the prefix cache
    num_completion_tokens: int = 0
    # Requests begun, by how they run: in flight, or by `model.generate`.
    num_in_flight: int = 0
    num_by_generate: int = 0
    busy_seconds: float = 0.0  # in steps; the engine was idle for the rest
    num_rows: int = 0  # of the last step, and so the next; 0 when nothing runs
    num_cache_tokens: int = 0  # places of the KV cache
    num_row_steps: int = 0  # the rows of every step, added up
    step_counts: tuple[int, ...] = ()  # steps by their time: up to each of STEP_SECONDS, and longer

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{**data, "step_counts": tuple(data["step_counts"])})

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in PROGRESS}


PROGRESS = tuple(each.name for each in fields(Progress))
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
