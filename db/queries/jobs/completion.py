"""Completion: attempts end, fenced by job, attempt, owner and state."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from uuid import UUID

from sqlalchemy import (
    Float,
    Insert,
    Integer,
    Result,
    String,
    Uuid,
    bindparam,
    case,
    column,
    func,
    insert,
    null,
    tuple_,
    update,
    values,
)
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from db.clock import now, seconds_from_now
from db.models import AttemptRow, Job
from db.models import Result as ResultRow
from db.outcome import Outcome
from db.queries.conditions import RUNNING
from db.queries.inserts import insert_unless_there, table
from db.states import JobState


def succeed_attempts(
    session: Session, owner: str, attempts: Sequence[tuple[UUID, int]]
) -> Result[UUID, int]:
    """End attempts as succeeded; returns (id, attempt) of those that the fence accepted.

    This is the common case of `finish_attempts`: all rows are alike, so the statement is built and
    compiled once.
    """
    job_ids = [job_id for job_id, _ in attempts]
    return session.execute(_succeed(owner), {"job_ids": job_ids, "attempts": attempts})


@cache
def _succeed(owner: str) -> ReturningUpdate[UUID, int]:
    return (
        update(Job)
        .where(
            # This condition uses the index; the fence follows.
            Job.id.in_(bindparam("job_ids", expanding=True)),
            tuple_(Job.id, Job.attempt).in_(bindparam("attempts", expanding=True)),
            Job.owner == owner,
            Job.state == RUNNING,
        )
        .values(
            state=JobState.SUCCEEDED,
            owner=None,
            lease_until=None,
            error_code=None,
            error_message=None,
            finished_at=now(),
        )
        .returning(Job.id, Job.attempt)
        .execution_options(synchronize_session=False)
    )


def finish_attempts(
    outcomes: Sequence[Outcome],
) -> ReturningUpdate[UUID, int, datetime | None]:
    """End attempts, each with its own outcome; returns (id, attempt, started_at) of those accepted.

    It changes no row that a newer attempt owns or that was cancelled meanwhile.
    """
    ended = (
        values(
            column("id", Uuid),
            column("attempt", Integer),
            column("owner", String),
            column("state", String),
            column("error_code", String),
            column("error_message", String),
            column("blamed", Integer),
            column("delay_seconds", Float),
            column("model", String),
            name="ended",
        )
        .data(
            [
                (
                    outcome.fence.job_id,
                    outcome.fence.attempt,
                    outcome.fence.owner,
                    outcome.state.value,
                    outcome.error_code,
                    outcome.error_message,
                    int(outcome.blamed),
                    outcome.delay_seconds,
                    outcome.model,
                )
                # In order of id: two flushes that share jobs must lock in the same order.
                for outcome in sorted(outcomes, key=lambda outcome: outcome.fence.job_id)
            ]
        )
        .cte("ended")
    )
    again = ended.c.state == JobState.QUEUED.value
    return (
        update(Job)
        .where(
            Job.id.in_([outcome.fence.job_id for outcome in outcomes]),  # as in `claim`
            Job.id == ended.c.id,
            Job.attempt == ended.c.attempt,
            Job.owner == ended.c.owner,
            Job.state == RUNNING,
        )
        .values(
            state=ended.c.state,
            model=func.coalesce(ended.c.model, Job.model),
            owner=None,
            lease_until=None,
            failures=Job.failures + ended.c.blamed,
            error_code=ended.c.error_code,
            error_message=ended.c.error_message,
            published_at=case((again, null()), else_=Job.published_at),
            not_before=case((again, seconds_from_now(ended.c.delay_seconds)), else_=null()),
            finished_at=case((again, null()), else_=now()),
        )
        .returning(Job.id, Job.attempt, Job.started_at)
        .execution_options(synchronize_session=False)
    )


@cache
def insert_results() -> Insert:
    return insert(table(ResultRow))


def insert_attempts(session: Session) -> Insert:
    """Record the attempts that did not succeed."""
    return insert_unless_there(session, AttemptRow)
