"""Leases: an owner renews those of its running attempts; those that expire requeue their jobs."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from uuid import UUID

from sqlalchemy import Select, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from db.clock import now, seconds_from_now
from db.models import Job
from db.queries.conditions import RUNNING
from db.states import JobState


def renew_leases(
    owner: str, job_ids: Sequence[UUID], lease_seconds: float
) -> ReturningUpdate[UUID, int]:
    """Renew the leases of an owner's running attempts; returns (id, attempt) of each."""
    return (
        update(Job)
        .where(Job.id.in_(job_ids), Job.owner == owner, Job.state == JobState.RUNNING)
        .values(lease_until=seconds_from_now(lease_seconds))
        .returning(Job.id, Job.attempt)
        .execution_options(synchronize_session=False)
    )


@cache
def running_attempts(owner: str) -> Select[UUID, int]:
    """The (id, attempt) of the attempts that an owner may still write."""
    return select(Job.id, Job.attempt).where(Job.state == RUNNING, Job.owner == owner)


@cache
def requeue_expired_leases(limit: int) -> ReturningUpdate[UUID, int, datetime | None]:
    """Requeue jobs whose lease has expired, without blame; returns (id, attempt, started_at)."""
    expired = (
        select(Job.id)
        .where(Job.state == RUNNING, Job.lease_until < now())
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("expired")
    )
    return (
        update(Job)
        .where(Job.id.in_(select(expired.c.id)))
        .values(state=JobState.QUEUED, owner=None, lease_until=None, published_at=None)
        .returning(Job.id, Job.attempt, Job.started_at)
        .execution_options(synchronize_session=False)
    )
