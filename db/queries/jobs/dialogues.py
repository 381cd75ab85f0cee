"""Dialogues: the chain of jobs that a chat continues."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Integer, Select, literal, select

from db.models import Job, Payload, Result
from db.states import JobState

MAX_JOBS = 100_000  # jobs of one dialogue; earlier ones are not read


def previous_job(job_id: UUID, tenant: str) -> Select[str, str, str, datetime | None]:
    """The (task, state, model, pruned_at) of a job, if it belongs to that tenant."""
    return select(Job.task, Job.state, Job.model, Job.pruned_at).where(
        Job.id == job_id, Job.tenant == tenant
    )


def chain(job_id: UUID) -> Select[UUID, UUID | None]:
    """The (id, previous id) of a job and of all that it continues, newest first.

    If the last of them has a previous id, that job no longer exists.
    """
    newest = (
        select(Payload.job_id, Payload.previous_job_id, literal(0, Integer).label("depth"))
        .where(Payload.job_id == job_id)
        .cte("chain", recursive=True)
    )
    links = newest.union_all(
        select(Payload.job_id, Payload.previous_job_id, newest.c.depth + 1)
        .join(newest, Payload.job_id == newest.c.previous_job_id)
        .where(newest.c.depth < MAX_JOBS - 1)
    )
    return select(links.c.job_id, links.c.previous_job_id).order_by(links.c.depth)


def spoken(job_ids: Sequence[UUID]) -> Select[UUID, dict[str, Any], str]:
    """The (id, contract, output) of the jobs that have succeeded and still have both texts."""
    return (
        select(Job.id, Payload.contract, Result.output)
        .join(Payload, Payload.job_id == Job.id)
        .join(Result, Result.job_id == Job.id)
        .where(Job.id.in_(job_ids), Job.state == JobState.SUCCEEDED, Job.pruned_at.is_(None))
    )
