"""Statements of erasure: find the jobs of a person, and delete every text in them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, delete, func, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from db.clock import now
from db.models import AttemptRow, Base, Batch, Job, Payload, QuarantinedMessage, Result, Segment
from db.queries.cache import forget_those_of_jobs
from db.queries.conditions import has_pair
from db.queries.retention import empty_payloads, empty_results
from db.states import UNFINISHED, JobState

if TYPE_CHECKING:
    from db.upkeep.erasure import Person

# The other tables that belong to a job, by their names in an export.
PARTS: dict[str, type[Base]] = {
    "segments": Segment,
    "attempts": AttemptRow,
    "messages": QuarantinedMessage,
}


def page(
    dialect: str,
    person: "Person",
    limit: int,
    after: UUID | None = None,
    with_erased: bool = False,
) -> Select[UUID]:
    """The ids of a person's jobs, in order; by default without erased ones."""
    statement = _jobs(dialect, person, select(Job.id))
    if not with_erased:
        statement = statement.where(Job.erased_at.is_(None))
    if after is not None:
        statement = statement.where(Job.id > after)
    return statement.order_by(Job.id).limit(limit)


def num_jobs(dialect: str, person: "Person") -> Select[int, int]:
    """The number of jobs, and of unfinished ones."""
    unfinished = func.count().filter(Job.state.in_(UNFINISHED))
    counted = _jobs(dialect, person, select(func.count(), unfinished).select_from(Job))
    return counted.where(Job.erased_at.is_(None))


def _jobs(
    dialect: str, person: "Person", statement: Select[*tuple[Any, ...]]
) -> Select[*tuple[Any, ...]]:
    if person.metadata:
        statement = statement.join(Payload, Payload.job_id == Job.id).where(
            *_pairs(dialect, Payload.metadata_, person)
        )
    return statement if person.tenant is None else statement.where(Job.tenant == person.tenant)


def _pairs(dialect: str, column: Any, person: "Person") -> list[ColumnElement[bool]]:
    return [has_pair(dialect, column, key, value) for key, value in person.metadata.items()]


def erase_jobs(session: Session, job_ids: Sequence[UUID]) -> tuple[Sequence[UUID], int, int]:
    """Delete every text of the jobs that no other transaction has locked, and end them.

    Returns their ids, the number of unfinished ones, and the number of deleted messages. The jobs
    are locked first: a worker that wants to write to one finds it cancelled. A locked job is
    skipped, since its transaction may be waiting for another of these.
    """
    quietly = {"synchronize_session": False}
    free = select(Job.id).where(Job.id.in_(job_ids)).order_by(Job.id)
    job_ids = session.scalars(free.with_for_update(skip_locked=True)).all()
    named = Job.id.in_(job_ids)
    ended = session.scalars(
        update(Job)
        .where(named, Job.state.in_(UNFINISHED))
        .values(state=JobState.CANCELLED, owner=None, lease_until=None, finished_at=now())
        .returning(Job.id)
        .execution_options(**quietly)
    ).all()
    session.execute(
        update(Job)
        .where(named)
        .values(
            custom_id=None,
            idempotency_key=None,
            error_message=None,
            pruned_at=now(),
            erased_at=now(),
        )
        .execution_options(**quietly)
    )
    session.execute(empty_payloads(Payload.job_id.in_(job_ids)).values(metadata_={}))
    session.execute(empty_results(Result.job_id.in_(job_ids)))
    session.execute(delete(Segment).where(Segment.job_id.in_(job_ids)).execution_options(**quietly))
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.job_id.in_(job_ids))
        .values(error_message=None, output=None)
        .execution_options(**quietly)
    )
    messages: int = session.execute(
        delete(QuarantinedMessage)
        .where(QuarantinedMessage.job_id.in_(job_ids))
        .execution_options(**quietly)
    ).rowcount  # type: ignore[attr-defined]
    return job_ids, len(ended), messages


def forget_cached(session: Session, job_ids: Sequence[UUID]) -> None:
    """Delete cached answers that may come from these jobs: all of their tenants'."""
    session.execute(forget_those_of_jobs(job_ids))


def erase_batches(dialect: str, person: "Person") -> ReturningUpdate[UUID]:
    """Remove the metadata of batches; their names stay."""
    return (
        update(Batch)
        .where(_of_batches(dialect, person), Batch.metadata_ != {})
        .values(metadata_={})
        .returning(Batch.id)
        .execution_options(synchronize_session=False)
    )


def num_batches(dialect: str, person: "Person") -> Select[int]:
    theirs = _of_batches(dialect, person)
    return select(func.count()).select_from(Batch).where(theirs, Batch.metadata_ != {})


def batches(dialect: str, person: "Person") -> Select[Batch]:
    return select(Batch).where(_of_batches(dialect, person)).order_by(Batch.id)


def _of_batches(dialect: str, person: "Person") -> ColumnElement[bool]:
    pairs = _pairs(dialect, Batch.metadata_, person)
    own = pairs if person.tenant is None else [Batch.tenant == person.tenant, *pairs]
    first, *others = own
    for other in others:
        first &= other
    return first


def messages(after: UUID | None, limit: int) -> Select[QuarantinedMessage]:
    statement = select(QuarantinedMessage).order_by(QuarantinedMessage.id).limit(limit)
    return statement if after is None else statement.where(QuarantinedMessage.id > after)


def whole_job(job_id: UUID) -> Select[Job, Payload, Result]:
    return (
        select(Job, Payload, Result)
        .outerjoin(Payload, Payload.job_id == Job.id)
        .outerjoin(Result, Result.job_id == Job.id)
        .where(Job.id == job_id)
    )


def rows_of(model: Any, job_id: UUID) -> Select[Any]:
    return select(model).where(model.job_id == job_id).order_by(*model.__table__.primary_key)
