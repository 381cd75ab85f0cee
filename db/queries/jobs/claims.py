"""Claims: a worker takes queued jobs, each with a lease."""

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Result, Select, bindparam, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from db.clock import microseconds_between, now, seconds_from_now
from db.models import Job, Payload
from db.queries.conditions import due, locked
from db.states import JobState

# id, task, model, lane, attempt, failures, time_limit_seconds, tenant, batch_id, traceparent,
# wait_microseconds
ClaimedColumns: TypeAlias = tuple[
    *tuple[UUID, str, str, str, int, int, float | None, str],
    *tuple[UUID | None, str | None, int],
]


def claim(
    session: Session, job_ids: Sequence[UUID], owner: str, lease_seconds: float
) -> Result[*ClaimedColumns]:
    """Claim the due jobs: running, the next attempt, with a lease.

    Returns the columns of each claimed job. An id that is not returned is finished, cancelled or
    another worker's.
    """
    return session.execute(_claim(owner, lease_seconds), {"job_ids": job_ids})


@cache
def _claim(owner: str, lease_seconds: float) -> ReturningUpdate[*ClaimedColumns]:
    named = Job.id.in_(bindparam("job_ids", expanding=True))
    # Rows are locked in order of id, as everywhere, so that two claims cannot deadlock. The claim
    # waits for locked rows: if it skipped a row that the dispatcher is just marking, the message
    # would be acked and the job would stay unclaimed.
    free = locked(select(Job.id).where(named, due())).cte("due")
    return (
        update(Job)
        # The ids are repeated: PostgreSQL would scan the whole table for those of the CTE.
        .where(Job.id.in_(select(free.c.id)), named)
        .values(
            state=JobState.RUNNING,
            attempt=Job.attempt + 1,
            owner=owner,
            lease_until=seconds_from_now(lease_seconds),
            started_at=now(),
            not_before=None,
        )
        .returning(
            Job.id,
            Job.task,
            Job.model,
            Job.lane,
            Job.attempt,
            Job.failures,
            Job.time_limit_seconds,
            Job.tenant,
            Job.batch_id,
            Job.traceparent,
            # A number: with two timestamps, Python would have to parse both for every job.
            microseconds_between(Job.created_at, Job.started_at).label("wait_microseconds"),
        )
        .execution_options(synchronize_session=False)
    )


def jobs_among(job_ids: Sequence[UUID]) -> Select[UUID]:
    """The ids that belong to jobs."""
    return select(Job.id).where(Job.id.in_(job_ids))


def payloads_of(job_ids: Sequence[UUID]) -> Select[UUID, dict[str, Any]]:
    return _payloads().params(job_ids=job_ids)


@cache
def _payloads() -> Select[UUID, dict[str, Any]]:
    named = Payload.job_id.in_(bindparam("job_ids", expanding=True))
    return select(Payload.job_id, Payload.contract).where(named)
