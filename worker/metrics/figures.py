"""Figures of a worker at one moment, for a scrape."""

from dataclasses import dataclass

from engine.protocol.progress import Progress


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """The figures of one engine process."""

    model: str
    replica: int
    is_ready: bool
    num_held: int  # requests that it owes an output
    num_restarts: int
    max_rows: int | None  # of a step; this and the next are None before it is loaded
    max_cache_tokens: int | None  # None also: it keeps nothing between steps
    progress: Progress


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    is_ready: bool
    leads: bool
    num_running: int
    num_deliveries: int
    num_unwritten: int  # outcomes that wait for the database
    num_set_aside: int  # messages that could not be taken, since the start
    engines: tuple[EngineFigures, ...]
