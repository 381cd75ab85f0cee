"""Publishing: which jobs' ids the broker has, and which it should have next."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    Update,
    bindparam,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session

from db.clock import now, seconds_from_now
from db.lane import Lane
from db.models import Job
from db.queries.conditions import QUEUED, locked, outstanding


def next_to_publish(
    model: str, lane: Lane, limit: int, min_age_seconds: float = 0.0
) -> Select[UUID, int]:
    """The (id, number of characters) of jobs whose turn it is, the first in line first."""
    return _in_line(model, lane, min_age_seconds).params(limit=limit)


@cache
def _in_line(model: str, lane: Lane, min_age_seconds: float) -> Select[UUID, int]:
    return (
        select(Job.id, Job.num_characters)
        .where(
            Job.state == QUEUED,
            Job.model == model,
            Job.lane == lane,
            Job.published_at.is_(None),
            Job.created_at <= seconds_from_now(-min_age_seconds),
            or_(Job.not_before.is_(None), Job.not_before <= now()),
        )
        .order_by(Job.turn_at, Job.deadline.asc().nulls_last(), Job.id)
        .limit(bindparam("limit", type_=Integer))
    )


def mark_published(session: Session, job_ids: Sequence[UUID]) -> None:
    session.execute(_mark_published(), {"job_ids": job_ids})


@cache
def _mark_published() -> Update:
    named = Job.id.in_(bindparam("job_ids", expanding=True))
    waiting = locked(select(Job.id).where(named, Job.state == QUEUED)).cte("waiting")
    return (
        update(Job)
        .where(Job.id.in_(select(waiting.c.id)), named)
        .values(published_at=now())
        .execution_options(synchronize_session=False)
    )


@cache
def published_long_ago(age_seconds: float) -> Select[str, str]:
    """The (model, lane) pairs with jobs that wait though they were published so long ago."""
    before = seconds_from_now(-age_seconds)
    return (
        select(Job.model, Job.lane)
        .where(outstanding(), Job.published_at < before, Job.state == QUEUED)
        .distinct()
    )


def unpublish_queued(
    queue: tuple[str, Lane] | None, published_before: ColumnElement[datetime]
) -> Update:
    """Forget that waiting jobs were published: the broker no longer has their messages."""
    condition = [
        outstanding(),
        Job.published_at <= published_before,
        Job.state == QUEUED,
    ]
    if queue is not None:
        model, lane = queue
        condition += [Job.model == model, Job.lane == lane]
    return (
        update(Job)
        .where(*condition)
        .values(published_at=None)
        .execution_options(synchronize_session=False)
    )


@cache
def outstanding_by_model() -> Select[str, int]:
    """How many unfinished jobs of each model the broker or a worker holds."""
    return select(Job.model, func.count()).where(outstanding()).group_by(Job.model)
