"""Batches: found by name, with their jobs counted by state."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Select, func, select

from db.models import Batch, Job
from db.queries.jobs import submission
from db.reading.storable import can_be_kept
from db.session import Database, database_from_environment
from db.states import UNFINISHED, JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBatch:
    """A batch, with the number of its jobs in each state."""

    id: UUID
    name: str
    run_key: str | None
    tenant: str
    metadata: Mapping[str, str]
    created_at: datetime
    closed_at: datetime | None  # None while jobs are still being added
    states: Mapping[JobState, int]

    @property
    def num_jobs(self) -> int:
        return sum(self.states.values())

    @property
    def num_unfinished(self) -> int:
        return sum(self.states.get(state, 0) for state in UNFINISHED)


def find_batches(
    name: str | UUID | None = None,
    *,
    limit: int | None = None,
    database: Database | None = None,
) -> list[FoundBatch]:
    """Batches, newest first.

    name: a batch's name, run key or id; None for every batch
    """
    if not can_be_kept(name):
        return []
    statement = select(Batch).order_by(Batch.created_at.desc(), Batch.id.desc()).limit(limit)
    if name is not None:
        statement = statement.where(Batch.id.in_(batch_ids(name)))
    with (database or database_from_environment()).read() as session:
        batches = session.scalars(statement).all()
        states: dict[UUID | None, dict[JobState, int]] = {}
        for batch_id, state, num_jobs in session.execute(
            submission.states_by_batch([batch.id for batch in batches])
        ):
            states.setdefault(batch_id, {})[JobState(state)] = num_jobs
    return [
        FoundBatch(
            id=batch.id,
            name=batch.name,
            run_key=batch.run_key,
            tenant=batch.tenant,
            metadata=batch.metadata_,
            created_at=batch.created_at,
            closed_at=batch.closed_at,
            states=states.get(batch.id, {}),
        )
        for batch in batches
    ]


def seconds_taken(batch: FoundBatch, *, database: Database | None = None) -> float | None:
    """Seconds from a batch's creation to the end of its last job; None before the first end."""
    ended = select(func.max(Job.finished_at)).where(Job.batch_id == batch.id)
    with (database or database_from_environment()).read() as session:
        finished_at = session.execute(ended).scalar_one()
    return None if finished_at is None else (finished_at - batch.created_at).total_seconds()


def batch_ids(name: str | UUID) -> Select[UUID]:
    """The ids of the batches with this name, run key or id."""
    try:
        by_id = Batch.id == (name if isinstance(name, UUID) else UUID(name))
    except ValueError:
        return select(Batch.id).where((Batch.name == name) | (Batch.run_key == name))
    return select(Batch.id).where(by_id)
