"""Submission: inserts batches, jobs and payloads, and counts jobs by state."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Insert, Select, Update, exists, func, insert, select, text, update
from sqlalchemy.orm import Session

from db.clock import now, seconds_from_now
from db.models import Batch, Job, Payload
from db.queries.inserts import insert_unless_there, table
from db.states import FINISHED

PRIORITY_SECONDS = 60.0


def insert_jobs(session: Session, jobs: list[dict[str, Any]]) -> set[UUID]:
    """Insert jobs; returns the ids of those whose id and idempotency key were new.

    A step of priority is worth `PRIORITY_SECONDS` of waiting.
    """
    by_priority: dict[int, list[dict[str, Any]]] = {}
    for job in jobs:
        by_priority.setdefault(job["priority"], []).append(job)
    inserted: set[UUID] = set()
    for priority, alike in by_priority.items():
        statement = insert_unless_there(session, Job).returning(Job.id)
        turn_at = seconds_from_now(-PRIORITY_SECONDS * priority)
        inserted.update(session.scalars(statement.values(turn_at=turn_at), alike))
    return inserted


def insert_batch(session: Session, row: dict[str, Any]) -> None:
    """Insert a batch, unless there is one with its run key."""
    session.execute(insert_unless_there(session, Batch), [row])


def insert_payloads() -> Insert:
    return insert(table(Payload))


def refresh_statistics(session: Session) -> None:
    """Update the planner's statistics after a table has grown much; else it guesses for a while."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("ANALYZE jobs, payloads"))
    else:
        session.execute(text("PRAGMA optimize"))


def close_batch(batch_id: UUID) -> Update:
    return update(Batch).where(Batch.id == batch_id).values(closed_at=now())


def has_unfinished(batch_id: UUID) -> Select[bool]:
    return select(exists().where(Job.batch_id == batch_id, Job.state.not_in(FINISHED)))


def job_states(batch_id: UUID) -> Select[str, int]:
    return select(Job.state, func.count()).where(Job.batch_id == batch_id).group_by(Job.state)


def states_by_batch(batch_ids: Sequence[UUID]) -> Select[UUID | None, str, int]:
    """The number of jobs of each batch by state."""
    return (
        select(Job.batch_id, Job.state, func.count())
        .where(Job.batch_id.in_(batch_ids))
        .group_by(Job.batch_id, Job.state)
    )


def states_by_model() -> Select[str, str, int]:
    """The number of jobs of each model by state."""
    return select(Job.model, Job.state, func.count()).group_by(Job.model, Job.state)
