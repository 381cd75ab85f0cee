"""Statements of retention: find expired rows page by page, and prune them.

Pruning deletes the texts of a job; its row and the counts of its result stay. All else that expires
is deleted. Only data of finished jobs is pruned, and the pruning statement checks that again, since
a job may be requeued after its page was read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Update,
    and_,
    case,
    delete,
    exists,
    false,
    null,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, Session

from db.clock import now, seconds_from_now
from db.models import (
    OUTSTANDING,
    AttemptRow,
    CacheEntry,
    Job,
    Payload,
    QuarantinedMessage,
    Result,
    Segment,
)
from db.upkeep.retention import ClassAges

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Prunable:
    """Rows that expire, and the setting with their age."""

    name: str  # shown to the user
    row_class: str
    key: tuple[InstrumentedAttribute[Any], ...]
    is_due: Callable[[ClassAges], ColumnElement[bool]]
    prune: Callable[[Session, ColumnElement[bool]], int]  # prunes the rows that fit a condition
    pruned_at: InstrumentedAttribute[Any] | None = None  # set if the row itself stays

    def page(self, after: Key | None, limit: int) -> Select[Any]:
        """The next keys, expired or not, in order.

        The expired ones among them are a second statement: in one, a planner may join and sort
        whole tables for every page.
        """
        statement = select(*self.key).order_by(*self.key).limit(limit)
        if self.pruned_at is not None:
            statement = statement.where(self.pruned_at.is_(None))
        return statement if after is None else statement.where(self._key > self._literal(after))

    def due(self, ages: ClassAges, keys: Sequence[Key]) -> Select[Any]:
        """The keys of expired rows."""
        return select(*self.key).where(self.among(ages, keys)).order_by(*self.key)

    def among(self, ages: ClassAges, keys: Sequence[Key]) -> ColumnElement[bool]:
        """Whether a key's row is still expired."""
        if len(self.key) == 1:
            named: ColumnElement[bool] = self.key[0].in_([value for (value,) in keys])
        else:
            named = and_(
                self.key[0].in_(sorted({key[0] for key in keys})),  # uses the index
                tuple_(*self.key).in_(keys),
            )
        return named & self.is_due(ages)

    @property
    def _key(self) -> Any:
        return self.key[0] if len(self.key) == 1 else tuple_(*self.key)

    def _literal(self, key: Key) -> Any:
        return (
            key[0] if len(self.key) == 1 else tuple_(*key, types=[each.type for each in self.key])
        )


def _too_old(instant: InstrumentedAttribute[Any], ages: ClassAges) -> ColumnElement[bool]:
    """Whether an instant of a job is older than the ages allow."""
    whens = [(Job.tenant == name, _ago(age)) for name, age in ages.by_tenant.items()]
    whens += [(Job.task == name, _ago(age)) for name, age in ages.by_task.items()]
    cutoff = null() if ages.for_all is None else _ago(ages.for_all)
    return instant <= (case(*whens, else_=cutoff) if whens else cutoff)


def _ago(seconds: float) -> ColumnElement[Any]:
    return seconds_from_now(-seconds)


def is_any_under_way() -> Select[bool]:
    """Whether any job is published or running."""
    # Written as in the index: with bound parameters the database would scan every row.
    return select(exists(select(Job.id).where(text(OUTSTANDING))))


def _of_finished_job(
    job_id: InstrumentedAttribute[Any],
    ages: ClassAges,
    instant: InstrumentedAttribute[Any] = Job.finished_at,
) -> ColumnElement[bool]:
    return exists().where(Job.id == job_id, Job.finished_at.is_not(None), _too_old(instant, ages))


def _prune_payloads(session: Session, condition: ColumnElement[bool]) -> int:
    job_ids = _locked_jobs(session, Payload.job_id, condition)
    if job_ids:
        session.execute(empty_payloads(Payload.job_id.in_(job_ids)))
        session.execute(_empty_metadata(job_ids))
        session.execute(_mark_pruned(job_ids))
    return len(job_ids)


def _prune_outputs(session: Session, condition: ColumnElement[bool]) -> int:
    job_ids = _locked_jobs(session, Result.job_id, condition)
    if job_ids:
        session.execute(empty_results(Result.job_id.in_(job_ids)))
        session.execute(_empty_metadata(job_ids))
        session.execute(_mark_pruned(job_ids))
    return len(job_ids)


def _prune_refused_outputs(session: Session, condition: ColumnElement[bool]) -> int:
    emptied = update(AttemptRow).where(condition).values(output=None).returning(AttemptRow.job_id)
    job_ids = session.scalars(emptied.execution_options(synchronize_session=False)).all()
    if job_ids:
        session.execute(_empty_metadata(sorted(set(job_ids))))
    return len(job_ids)


def _prune_segments(session: Session, condition: ColumnElement[bool]) -> int:
    deleted = delete(Segment).where(condition).returning(Segment.job_id)
    job_ids = session.scalars(deleted.execution_options(synchronize_session=False)).all()
    if job_ids:
        session.execute(_empty_metadata(sorted(set(job_ids))))
    return len(job_ids)


def _locked_jobs(
    session: Session, job_id: InstrumentedAttribute[Any], condition: ColumnElement[bool]
) -> list[Any]:
    """The finished jobs of rows, locked, so that none is requeued without its text.

    A row that another transaction has locked is left for another pass.
    """
    job_ids = session.scalars(select(job_id).where(condition)).all()
    return list(
        session.scalars(
            select(Job.id)
            .where(Job.id.in_(job_ids), Job.finished_at.is_not(None))
            .order_by(Job.id)
            .with_for_update(skip_locked=True)
        )
    )


def empty_payloads(condition: ColumnElement[bool]) -> Update:
    """Delete the texts in payloads; metadata stays."""
    return _quietly(update(Payload).where(condition).values(contract={}, pruned_at=now()))


def empty_results(condition: ColumnElement[bool]) -> Update:
    """Delete from results whatever may contain a text; counts and the model stay."""
    emptied = update(Result).where(condition)
    return _quietly(
        emptied.values(
            output="",
            alternatives=[],
            reasoning=None,
            provenance={},
            coverage=None,
            pruned_at=now(),
        )
    )


def _empty_metadata(job_ids: Sequence[Any]) -> Update:
    """Delete the metadata of jobs without texts.

    A person who asks for remaining data is found by it, so it goes last.
    """
    texts = (
        exists().where(Result.job_id == Payload.job_id, Result.pruned_at.is_(None)),
        exists().where(Segment.job_id == Payload.job_id),
        exists().where(AttemptRow.job_id == Payload.job_id, AttemptRow.output.is_not(None)),
    )
    return _quietly(
        update(Payload)
        .where(Payload.job_id.in_(job_ids), Payload.pruned_at.is_not(None), ~or_(*texts))
        .values(metadata_={})
    )


def _mark_pruned(job_ids: Sequence[Any]) -> Update:
    return _quietly(update(Job).where(Job.id.in_(job_ids)).values(pruned_at=now()))


def _quietly(statement: Update) -> Update:
    return statement.execution_options(synchronize_session=False)


def _deleting(model: Any) -> Callable[[Session, ColumnElement[bool]], int]:
    def delete_rows(session: Session, condition: ColumnElement[bool]) -> int:
        statement = delete(model).where(condition)
        deleted = session.execute(statement.execution_options(synchronize_session=False))
        return deleted.rowcount  # type: ignore[attr-defined, no-any-return]

    return delete_rows


def aged_rows(
    name: str, row_class: str, key: InstrumentedAttribute[Any], instant: InstrumentedAttribute[Any]
) -> Prunable:
    """Rows that belong to no job, deleted when they expire."""

    def is_due(ages: ClassAges) -> ColumnElement[bool]:
        # Rows without a tenant have only the age for all, which may be unset while a tenant has
        # one.
        return false() if ages.for_all is None else instant <= _ago(ages.for_all)

    return Prunable(name, row_class, (key,), is_due, _deleting(key.class_))


PRUNABLES = (
    Prunable(
        "payloads",
        "payloads",
        (Payload.job_id,),
        lambda ages: Payload.pruned_at.is_(None) & _of_finished_job(Payload.job_id, ages),
        _prune_payloads,
        Payload.pruned_at,
    ),
    Prunable(
        "outputs",
        "outputs",
        (Result.job_id,),
        lambda ages: Result.pruned_at.is_(None) & _of_finished_job(Result.job_id, ages),
        _prune_outputs,
        Result.pruned_at,
    ),
    Prunable(
        "refused outputs",
        "outputs",
        (AttemptRow.job_id, AttemptRow.attempt),
        lambda ages: AttemptRow.output.is_not(None) & _of_finished_job(AttemptRow.job_id, ages),
        _prune_refused_outputs,
    ),
    Prunable(
        "segments",
        "segments",
        (Segment.job_id, Segment.position),
        lambda ages: _of_finished_job(Segment.job_id, ages),
        _prune_segments,
    ),
    Prunable(
        "attempts",
        "attempts",
        (AttemptRow.job_id, AttemptRow.attempt),
        lambda ages: _of_finished_job(AttemptRow.job_id, ages),
        _deleting(AttemptRow),
    ),
    aged_rows("cached answers", "cache", CacheEntry.key, CacheEntry.created_at),
    # Messages that belong to no job: they are pruned at the age of inputs.
    aged_rows("messages", "payloads", QuarantinedMessage.id, QuarantinedMessage.arrived_at),
)
