"""Deadlines: jobs that nobody waits for any more."""

from functools import cache
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.sql.dml import ReturningUpdate

from db.clock import now
from db.models import Job
from db.states import UNFINISHED, JobState


@cache
def expire_overdue(limit: int) -> ReturningUpdate[UUID]:
    """End the unfinished jobs whose deadline has passed; a running one may write no more."""
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
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
