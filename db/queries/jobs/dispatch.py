"""Dispatch: the statements of the leading dispatcher.

They find jobs to publish and mark them, requeue lost ones, and end jobs whose deadline has passed.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Delete,
    Integer,
    Select,
    Update,
    bindparam,
    delete,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from db.clock import now, seconds_from_now
from db.lane import Lane
from db.models import Job, Leadership
from db.queries.conditions import QUEUED, RUNNING, locked, outstanding
from db.queries.inserts import insert_unless_there
from db.states import UNFINISHED, JobState


def lead(session: Session, name: str, leader: str, seconds: float) -> bool:
    """Take or keep a leadership; False if another worker holds it."""
    if session.scalar(_keep(name, leader, seconds)) is not None:
        return True
    first = session.execute(
        insert_unless_there(session, Leadership)
        .values(name=name, leader=leader, until=seconds_from_now(seconds))
        .returning(Leadership.name)
    ).scalar()
    return first is not None


@cache
def _keep(name: str, leader: str, seconds: float) -> ReturningUpdate[str]:
    return (
        update(Leadership)
        .where(
            Leadership.name == name,
            or_(Leadership.leader == leader, Leadership.until < now()),
        )
        .values(leader=leader, until=seconds_from_now(seconds))
        .returning(Leadership.name)
        .execution_options(synchronize_session=False)
    )


def resign(name: str, leader: str) -> Delete:
    return delete(Leadership).where(Leadership.name == name, Leadership.leader == leader)


def is_due(name: str) -> Select[bool]:
    """Whether the time has come to do a duty again; None: it was never done."""
    return select((Leadership.until <= now()).label("due")).where(Leadership.name == name)


def take_over(name: str, leader: str, seconds: float) -> ReturningUpdate[str]:
    """Take a duty that is due; returns nothing if another worker was first."""
    return (
        update(Leadership)
        .where(Leadership.name == name, Leadership.until <= now())
        .values(leader=leader, until=seconds_from_now(seconds))
        .returning(Leadership.name)
        .execution_options(synchronize_session=False)
    )


def next_to_publish(
    model: str, lane: Lane, limit: int, min_age_seconds: float = 0.0
) -> Select[UUID, int]:
    """The (id, number of characters) of the next jobs in line."""
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
    """The (model, lane) pairs with queued jobs that were published before this age."""
    before = seconds_from_now(-age_seconds)
    return (
        select(Job.model, Job.lane)
        .where(outstanding(), Job.published_at < before, Job.state == QUEUED)
        .distinct()
    )


def unpublish_queued(
    queue: tuple[str, Lane] | None, published_before: ColumnElement[datetime]
) -> Update:
    """Mark queued jobs as unpublished: the broker no longer has their messages."""
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
    """The number of unfinished jobs of each model that the broker or a worker holds."""
    return select(Job.model, func.count()).where(outstanding()).group_by(Job.model)


@cache
def has_run_out() -> Select[bool]:
    """Whether the lease of a running job, or the deadline of an unfinished one, has passed.

    It compares the minimum of each: an index finds that at the same cost whatever the planner
    expects of the other rows, which might otherwise make it scan the table.
    """
    lease = select(func.min(Job.lease_until)).where(Job.state == RUNNING)
    deadline = select(func.min(Job.deadline)).where(
        Job.deadline.is_not(None), Job.finished_at.is_(None)
    )
    return select(
        or_(lease.scalar_subquery() < now(), deadline.scalar_subquery() <= now()).label("run_out")
    )


@cache
def expire_overdue(limit: int) -> ReturningUpdate[UUID, str, str]:
    """End unfinished jobs whose deadline has passed; a running attempt may no longer write.

    Returns (id, task, model).
    """
    # A night's jobs share a deadline: all at once might not fit into a statement's time.
    overdue = (
        select(Job.id)
        .where(Job.deadline <= now(), Job.finished_at.is_(None), Job.state.in_(UNFINISHED))
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("overdue")
    )
    return (
        update(Job)
        .where(Job.id.in_(select(overdue.c.id)))
        .values(
            state=JobState.EXPIRED,
            owner=None,
            lease_until=None,
            finished_at=now(),
            error_code="deadline_passed",
            error_message="the deadline passed before the job was finished",
        )
        .returning(Job.id, Job.task, Job.model)
        .execution_options(synchronize_session=False)
    )
