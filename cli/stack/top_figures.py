"""The figures of `tidemill top`: at one moment, and the rates between two."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from kombu.exceptions import OperationalError

from db.queries import worker_registry
from db.reading.figures import LaneBacklog, OpenBatches, find_backlog, find_open_batches
from db.session import Database
from tasks.configuration import settings

ANSWER_SECONDS = 1.0  # that the workers have to say what they do


@dataclass(frozen=True, slots=True)
class TopFigures:
    """Figures of the database, and the workers' reports through Redis, at one moment."""

    at: float  # monotonic
    names: tuple[str, ...]  # of the workers that live
    answers: dict[str, dict[str, Any]]  # by name; a worker that is busy may have none
    redis_answers: bool
    backlog: tuple[LaneBacklog, ...]
    batches: OpenBatches


@dataclass(frozen=True, slots=True)
class EngineNow:
    model: str
    num_rows: int
    max_rows: int | None
    num_cache_tokens: int
    max_cache_tokens: int | None
    num_waiting: int  # requests
    tokens_per_second: float  # read and written
    num_restarts: int


@dataclass(frozen=True, slots=True)
class WorkerNow:
    name: str
    answers: bool
    leads: bool
    num_running: int
    engines: tuple[EngineNow, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    workers: tuple[WorkerNow, ...]
    redis_answers: bool
    backlog: tuple[LaneBacklog, ...]
    batches: OpenBatches

    @property
    def tokens_per_second(self) -> float:
        return sum(each.tokens_per_second for worker in self.workers for each in worker.engines)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds until the backlog is done at this pace; 0: empty, None: nothing moves."""
        num_tokens = sum(each.num_tokens for each in self.backlog)
        if not num_tokens:
            return 0.0
        return num_tokens / self.tokens_per_second if self.tokens_per_second else None

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "tokens_per_second": self.tokens_per_second,
            "eta_seconds": self.eta_seconds,
        }


def top_figures(database: Database) -> TopFigures:
    with database.read() as session:
        names = tuple(worker.name for worker in session.scalars(worker_registry.live_workers()))
        backlog = tuple(find_backlog(session))
        batches = find_open_batches(session)
    answers = _answers(len(names))
    return TopFigures(time.monotonic(), names, answers or {}, answers is not None, backlog, batches)


def _answers(num_workers: int) -> dict[str, dict[str, Any]] | None:
    """The workers' reports by name; None if Redis is away."""
    from kombu import Connection

    from tasks.app import app

    with Connection(settings.broker_url(), connect_timeout=5) as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)
            if not num_workers:
                return {}
            inspection = app.control.inspect(
                timeout=ANSWER_SECONDS, connection=connection, limit=num_workers
            )
            stats = inspection.stats() or {}
        except (OperationalError, OSError, *connection.connection_errors):
            return None
    pools = (each.get("pool", {}).get("tidemill") for each in stats.values())
    return {each["owner"]: each for each in pools if each is not None}


def snapshot_of(before: TopFigures, now: TopFigures) -> Snapshot:
    return Snapshot(
        tuple(_worker(name, before, now) for name in now.names),
        now.redis_answers,
        now.backlog,
        now.batches,
    )


def _worker(name: str, before: TopFigures, now: TopFigures) -> WorkerNow:
    answer, earlier = now.answers.get(name), before.answers.get(name)
    if answer is None:
        return WorkerNow(name, False, False, 0, ())
    # By process: one that was started again counts from nothing.
    totals = {each["pid"]: _num_tokens(each) for each in (earlier or {}).get("engines", ())}
    seconds = max(now.at - before.at, 1e-9)
    return WorkerNow(
        name,
        True,
        answer["leads"],
        answer["num_running_jobs"],
        tuple(
            EngineNow(
                model=each["model"],
                num_rows=each["num_rows"],
                max_rows=each["max_rows"],
                num_cache_tokens=each["num_cache_tokens"],
                max_cache_tokens=each["max_cache_tokens"],
                num_waiting=each["num_waiting"],
                tokens_per_second=(_num_tokens(each) - totals[each["pid"]]) / seconds
                if each["pid"] in totals
                else 0.0,
                num_restarts=each["num_restarts"],
            )
            for each in answer["engines"]
        ),
    )


def _num_tokens(engine: dict[str, Any]) -> int:
    return int(engine["num_prompt_tokens"] + engine["num_completion_tokens"])
