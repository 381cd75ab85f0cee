"""Figures for monitoring: waiting jobs, ended jobs and open batches."""

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import CompoundSelect, Select, func, select
from sqlalchemy.orm import Session

from db.clock import now
from db.models import Batch, Job, Result, WorkerRow
from db.queries.conditions import QUEUED, outstanding
from db.states import UNFINISHED

SAMPLED_RESULTS = 1000  # the newest results, from which the tokens of a text are estimated
CHARACTERS_PER_TOKEN = 4.0  # used until there is a result
COMPLETION_TOKENS = 64.0


@dataclass(frozen=True, slots=True)
class LaneBacklog:
    """The unfinished jobs of one model and lane."""

    model: str
    lane: str
    num_queued: int
    num_running: int
    num_tokens: int  # estimated tokens of the queued jobs, of prompts and answers
    oldest_seconds: float  # since the oldest queued job was submitted; 0: none is queued


@dataclass(frozen=True, slots=True)
class EndedJobs:
    """The jobs of a task and model in one state, by error code."""

    task: str
    model: str
    state: str
    error_code: str  # "": none
    num_jobs: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class OpenBatches:
    """Batches with unfinished jobs."""

    num: int
    oldest_seconds: float  # 0: there is none
    # Until the first deadline of an unfinished job; negative if it has passed. None: no deadline.
    until_deadline_seconds: float | None


def find_backlog(session: Session) -> list[LaneBacklog]:
    """The unfinished jobs by model and lane, from indexes alone; empty pairs are left out."""
    at: datetime = session.execute(select(now())).scalar_one()
    rates = _token_rates(session)
    backlogs: dict[tuple[str, str], LaneBacklog] = {}
    for model, lane, state, num, characters, oldest in session.execute(_unfinished()):
        before = backlogs.get((model, lane), LaneBacklog(model, lane, 0, 0, 0, 0.0))
        if state == "running":
            backlogs[model, lane] = LaneBacklog(
                model,
                lane,
                before.num_queued,
                before.num_running + num,
                before.num_tokens,
                before.oldest_seconds,
            )
            continue
        rate = rates.get(model, _DEFAULT_RATE)
        backlogs[model, lane] = LaneBacklog(
            model,
            lane,
            before.num_queued + num,
            before.num_running,
            before.num_tokens + round(characters * rate[0] + num * rate[1]),
            max(before.oldest_seconds, (at - oldest).total_seconds()),
        )
    return sorted(backlogs.values(), key=lambda each: (each.model, each.lane))


_DEFAULT_RATE = (1 / CHARACTERS_PER_TOKEN, COMPLETION_TOKENS)


def _token_rates(session: Session) -> dict[str, tuple[float, float]]:
    """Recent prompt tokens per character and completion tokens per job, by model."""
    return {
        model: (prompt_tokens / max(characters, 1), completion_tokens / num)
        for model, num, characters, prompt_tokens, completion_tokens in session.execute(_sample())
    }


@cache
def _sample() -> Select[*tuple[Any, ...]]:
    # Ids are in order of time, so these results are of the jobs that were submitted last.
    newest = (
        select(Result.job_id, Result.prompt_tokens, Result.completion_tokens)
        .order_by(Result.job_id.desc())
        .limit(SAMPLED_RESULTS)
        .subquery()
    )
    return (
        select(
            Job.model,
            func.count(),
            func.sum(Job.num_characters),
            func.sum(newest.c.prompt_tokens),
            func.sum(newest.c.completion_tokens),
        )
        .join(newest, newest.c.job_id == Job.id)
        .group_by(Job.model)
    )


@cache
def _unfinished() -> CompoundSelect[*tuple[Any, ...]]:
    # Each half has a partial index of its own.
    columns = (
        Job.model,
        Job.lane,
        Job.state,
        func.count(),
        func.sum(Job.num_characters),
        func.min(Job.created_at),
    )
    by = (Job.model, Job.lane, Job.state)
    waiting = (Job.state == QUEUED, Job.published_at.is_(None))
    return (
        select(*columns)
        .where(*waiting)
        .group_by(*by)
        .union_all(select(*columns).where(outstanding()).group_by(*by))
    )


def find_ended_jobs(session: Session) -> list[EndedJobs]:
    """Every finished job, counted. It reads the whole table: call it rarely."""
    return [
        EndedJobs(task, model, state, code or "", num, int(prompt or 0), int(completion or 0))
        for task, model, state, code, num, prompt, completion in session.execute(_ended())
    ]


@cache
def _ended() -> Select[*tuple[Any, ...]]:
    return (
        select(
            Job.task,
            Job.model,
            Job.state,
            Job.error_code,
            func.count(),
            func.sum(Result.prompt_tokens),
            func.sum(Result.completion_tokens),
        )
        .outerjoin(Result, Result.job_id == Job.id)
        .where(Job.finished_at.is_not(None))
        .group_by(Job.task, Job.model, Job.state, Job.error_code)
    )


def find_open_batches(session: Session) -> OpenBatches:
    at: datetime = session.execute(select(now())).scalar_one()
    unfinished = select(Job.id).where(Job.batch_id == Batch.id, Job.state.in_(UNFINISHED)).exists()
    num, oldest = session.execute(
        select(func.count(), func.min(Batch.created_at)).where(unfinished)
    ).one()
    deadline = session.scalar(
        select(func.min(Job.deadline)).where(Job.deadline.is_not(None), Job.finished_at.is_(None))
    )
    return OpenBatches(
        num,
        (at - oldest).total_seconds() if oldest is not None else 0.0,
        (deadline - at).total_seconds() if deadline is not None else None,
    )


def num_live_workers(session: Session) -> int:
    return session.execute(
        select(func.count()).select_from(WorkerRow).where(WorkerRow.alive_until >= now())
    ).scalar_one()
