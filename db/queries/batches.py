"""Batches, and how their jobs and others stand."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Select, Update, exists, func, select, update

from db.clock import now
from db.models import Batch, Job
from db.states import FINISHED


def batch_by_run_key(run_key: str) -> Select[Batch]:
    return select(Batch).where(Batch.run_key == run_key)


def close_batch(batch_id: UUID) -> Update:
    return update(Batch).where(Batch.id == batch_id).values(closed_at=now())


def has_unfinished(batch_id: UUID) -> Select[bool]:
    return select(exists().where(Job.batch_id == batch_id, Job.state.not_in(FINISHED)))


def job_states(batch_id: UUID) -> Select[str, int]:
    return select(Job.state, func.count()).where(Job.batch_id == batch_id).group_by(Job.state)


def states_by_batch(batch_ids: Sequence[UUID]) -> Select[UUID | None, str, int]:
    """How many jobs of each batch are in each state."""
    return (
        select(Job.batch_id, Job.state, func.count())
        .where(Job.batch_id.in_(batch_ids))
        .group_by(Job.batch_id, Job.state)
    )


def states_by_model() -> Select[str, str, int]:
    """How many jobs of each model are in each state."""
    return select(Job.model, Job.state, func.count()).group_by(Job.model, Job.state)
