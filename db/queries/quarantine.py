"""Statements of the quarantine, which holds the newest messages that could not be taken."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Delete, Select, delete, func, or_, select
from sqlalchemy.orm import Session

from db.models import Job, QuarantinedMessage
from db.queries.inserts import insert_unless_there
from db.states import JobState

MAX_MESSAGES = 10_000
MAX_BYTES = 64 * 2**20  # of all bodies together


def insert_quarantined(session: Session, rows: Sequence[dict[str, Any]]) -> None:
    """Insert these messages, each once; beyond the limits the oldest are deleted."""
    session.execute(insert_unless_there(session, QuarantinedMessage), list(rows))
    session.execute(_over_the_limits(MAX_MESSAGES, MAX_BYTES))


def _over_the_limits(max_messages: int, max_bytes: int) -> Delete:
    newest_first = QuarantinedMessage.id.desc()
    counted = select(
        QuarantinedMessage.id,
        func.row_number().over(order_by=newest_first).label("place"),
        func.sum(func.length(QuarantinedMessage.body)).over(order_by=newest_first).label("size"),
    ).subquery()
    over = select(counted.c.id).where(
        or_(counted.c.place > max_messages, counted.c.size > max_bytes)
    )
    return (
        delete(QuarantinedMessage)
        .where(QuarantinedMessage.id.in_(over))
        .execution_options(synchronize_session=False)
    )


def quarantined(limit: int) -> Select[QuarantinedMessage]:
    """The newest messages, newest first."""
    return select(QuarantinedMessage).order_by(QuarantinedMessage.id.desc()).limit(limit)


def quarantined_of(job_id: UUID, limit: int) -> Select[UUID, str]:
    """The (id, reason) of the newest messages that name a job."""
    return (
        select(QuarantinedMessage.id, QuarantinedMessage.reason)
        .where(QuarantinedMessage.job_id == job_id)
        .order_by(QuarantinedMessage.id.desc())
        .limit(limit)
    )


def num_quarantined(condition: ColumnElement[bool] | None = None) -> Select[int]:
    counted = select(func.count()).select_from(QuarantinedMessage)
    return counted if condition is None else counted.where(condition)


def delete_quarantined(message_ids: Sequence[UUID] | None) -> Delete:
    """Delete these messages; None: all of them."""
    forgotten = delete(QuarantinedMessage).execution_options(synchronize_session=False)
    if message_ids is None:
        return forgotten
    return forgotten.where(QuarantinedMessage.id.in_(message_ids))


def delete_never_begun(job_id: UUID, reason: str) -> Delete:
    """Delete the failed job that was stored for a message quarantined for this reason.

    A job that ever had a model, an attempt or another error is not deleted.
    """
    return (
        delete(Job)
        .where(
            Job.id == job_id,
            Job.error_code == reason,
            Job.model == "",
            Job.attempt == 0,
            Job.state == JobState.FAILED,
        )
        .execution_options(synchronize_session=False)
    )
