"""Throughput: the recent speed of models, and the work that waits for them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select

from db.clock import now
from db.models import Job, ModelCardRow, Result, Segment, WorkerRow
from db.states import UNFINISHED, JobState


def recent_results(
    model: str, task: str, limit: int
) -> Select[datetime | None, datetime | None, int, int | None, int | None, Any]:
    """The newest results: start, end, characters, tokens in and out, coverage."""
    return (
        select(
            Job.started_at,
            Job.finished_at,
            Job.num_characters,
            Result.prompt_tokens,
            Result.completion_tokens,
            Result.coverage,
        )
        .join(Result, Result.job_id == Job.id)
        .where(Job.model == model, Job.task == task, Job.state == JobState.SUCCEEDED)
        .order_by(Job.created_at.desc(), Job.id.desc())
        .limit(limit)
    )


def newest_model_card(model: str) -> Select[dict[str, Any]]:
    """The model card of a model's newest result."""
    return (
        select(ModelCardRow.content)
        .join(Result, Result.model_card_id == ModelCardRow.id)
        .join(Job, Job.id == Result.job_id)
        .where(Job.model == model, Job.state == JobState.SUCCEEDED)
        .order_by(Job.created_at.desc(), Job.id.desc())
        .limit(1)
    )


def waiting_characters(models: Sequence[str]) -> Select[str, str, int, int]:
    """The (model, task, jobs, characters) of queued and running jobs."""
    return (
        select(Job.model, Job.task, func.count(), func.sum(Job.num_characters))
        .where(Job.model.in_(models), Job.state.in_(UNFINISHED))
        .group_by(Job.model, Job.task)
    )


def live_engines() -> Select[list[dict[str, Any]] | None]:
    """The engines of each live worker."""
    return select(WorkerRow.engines).where(WorkerRow.alive_until > now())


def progress_by_kind(batch_id: UUID) -> Select[str, str, str, int, int, int | None]:
    """The (model, task, state, jobs, characters, tokens) of a batch; tokens are of its results."""
    tokens = func.sum(Result.prompt_tokens + Result.completion_tokens)
    return (
        select(Job.model, Job.task, Job.state, func.count(), func.sum(Job.num_characters), tokens)
        .outerjoin(Result, Result.job_id == Job.id)
        .where(Job.batch_id == batch_id)
        .group_by(Job.model, Job.task, Job.state)
    )


def finished_parts(batch_id: UUID) -> Select[UUID, str, str, int, int]:
    """The (job, model, task, characters, parts) of a batch's running jobs with finished parts."""
    return (
        select(Job.id, Job.model, Job.task, Job.num_characters, func.count())
        .join(Segment, Segment.job_id == Job.id)
        .where(Job.batch_id == batch_id, Job.state == JobState.RUNNING)
        .group_by(Job.id, Job.model, Job.task, Job.num_characters)
    )


def some_parts(job_ids: Sequence[UUID], limit: int) -> Select[UUID, dict[str, Any]]:
    """The (job, output) of up to `limit` finished parts."""
    return select(Segment.job_id, Segment.output).where(Segment.job_id.in_(job_ids)).limit(limit)
