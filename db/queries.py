"""Every statement that changes a job, each a named function.

A change of state carries its condition, so running a statement twice, or too
late, changes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Delete,
    Float,
    Insert,
    Integer,
    Select,
    String,
    Table,
    Update,
    Uuid,
    and_,
    case,
    column,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    null,
    or_,
    select,
    text,
    tuple_,
    update,
    values,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from db.clock import now, seconds_from_now
from db.lane import Lane
from db.models import AttemptRow, Base, Batch, Job, Leadership, Payload, Result, WorkerRow
from db.outcome import Outcome
from db.states import FINISHED, RETRIABLE, UNFINISHED, JobState

PRIORITY_SECONDS = 60.0

# Written out, because a partial index serves only a condition that is seen to
# imply its own, and a parameter is not.
QUEUED: ColumnElement[str] = literal_column("'queued'")
RUNNING: ColumnElement[str] = literal_column("'running'")


def insert_unless_there(session: Session, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """An insert that leaves out, without an error, rows whose unique values exist."""
    dialect = session.get_bind().dialect.name
    build = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return build(_table(table)).on_conflict_do_nothing()


def _table(model: type[Base]) -> Table:
    # The bare table: an ORM insert would look at every row in Python.
    return cast(Table, model.__table__)


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


def insert_payloads() -> Insert:
    return insert(_table(Payload))


def jobs_by_idempotency_key(tenant: str, keys: Iterable[str]) -> Select[Job]:
    return select(Job).where(Job.tenant == tenant, Job.idempotency_key.in_(list(keys)))


def _due() -> ColumnElement[bool]:
    """A job that may be taken: in line and its time has come, or left by a dead worker."""
    return and_(
        or_(
            and_(
                Job.state == QUEUED,
                or_(Job.not_before.is_(None), Job.not_before <= now()),
            ),
            and_(Job.state == RUNNING, Job.lease_until < now()),
        ),
        or_(Job.deadline.is_(None), Job.deadline > now()),
    )


def claim(
    job_ids: Sequence[UUID], owner: str, lease_seconds: float
) -> ReturningUpdate[UUID, str, str, int, int, float | None]:
    """Take the jobs that are due: running, the next attempt, with a lease.

    Returns (id, task, model, attempt, failures, time_limit_seconds) of those it
    got. An id that does not come back is finished, cancelled or someone else's.
    """
    # Locked in order of id, as everywhere, so that two claims cannot deadlock;
    # waiting, not skipping: a row that the dispatcher is just marking would be
    # skipped, its message acked, and nobody would come for it.
    due = _locked(select(Job.id).where(Job.id.in_(job_ids), _due())).cte("due")
    return (
        update(Job)
        # The ids once more: PostgreSQL would rather read the table than trust a CTE's.
        .where(Job.id.in_(select(due.c.id)), Job.id.in_(job_ids))
        .values(
            state=JobState.RUNNING,
            attempt=Job.attempt + 1,
            owner=owner,
            lease_until=seconds_from_now(lease_seconds),
            started_at=now(),
            not_before=None,
        )
        .returning(Job.id, Job.task, Job.model, Job.attempt, Job.failures, Job.time_limit_seconds)
        .execution_options(synchronize_session=False)
    )


def _locked(jobs: Select[UUID]) -> Select[UUID]:
    """Lock these rows one after the other; SQLite has one writer and needs none of it."""
    return jobs.order_by(Job.id).with_for_update()


def payloads_of(job_ids: Sequence[UUID]) -> Select[UUID, dict[str, Any]]:
    return select(Payload.job_id, Payload.contract).where(Payload.job_id.in_(job_ids))


def renew_leases(
    owner: str, job_ids: Sequence[UUID], lease_seconds: float
) -> ReturningUpdate[UUID, int]:
    """Prolong the leases of an owner's running attempts; returns (id, attempt) of those it has."""
    return (
        update(Job)
        .where(Job.id.in_(job_ids), Job.owner == owner, Job.state == JobState.RUNNING)
        .values(lease_until=seconds_from_now(lease_seconds))
        .returning(Job.id, Job.attempt)
        .execution_options(synchronize_session=False)
    )


def running_attempts(owner: str) -> Select[UUID, int]:
    """The attempts that an owner still has a right to."""
    return select(Job.id, Job.attempt).where(Job.state == RUNNING, Job.owner == owner)


def succeed_attempts(
    owner: str, attempts: Sequence[tuple[UUID, int]]
) -> ReturningUpdate[UUID, int]:
    """End attempts well; returns (id, attempt) of those that were still the ones to write.

    The common case of `finish_attempts`: nothing differs from row to row, so
    the statement is compiled once.
    """
    return (
        update(Job)
        .where(
            Job.id.in_([job_id for job_id, _ in attempts]),  # the index; the fence follows
            tuple_(Job.id, Job.attempt).in_(list(attempts)),
            Job.owner == owner,
            Job.state == RUNNING,
        )
        .values(
            state=JobState.SUCCEEDED,
            owner=None,
            lease_until=None,
            error_code=None,
            error_message=None,
            finished_at=now(),
        )
        .returning(Job.id, Job.attempt)
        .execution_options(synchronize_session=False)
    )


def finish_attempts(
    outcomes: Sequence[Outcome],
) -> ReturningUpdate[UUID, int, datetime | None]:
    """End attempts, each in its own way; returns (id, attempt, started_at) of those still to write.

    Changes no row that a newer attempt owns, or that was cancelled meanwhile.
    """
    ended = (
        values(
            column("id", Uuid),
            column("attempt", Integer),
            column("owner", String),
            column("state", String),
            column("error_code", String),
            column("error_message", String),
            column("blamed", Integer),
            column("delay_seconds", Float),
            name="ended",
        )
        .data(
            [
                (
                    outcome.fence.job_id,
                    outcome.fence.attempt,
                    outcome.fence.owner,
                    outcome.state.value,
                    outcome.error_code,
                    outcome.error_message,
                    int(outcome.blamed),
                    outcome.delay_seconds,
                )
                # In order of id: two flushes that share jobs must lock alike.
                for outcome in sorted(outcomes, key=lambda outcome: outcome.fence.job_id)
            ]
        )
        .cte("ended")
    )
    again = ended.c.state == JobState.QUEUED.value
    return (
        update(Job)
        .where(
            Job.id.in_([outcome.fence.job_id for outcome in outcomes]),  # as in `claim`
            Job.id == ended.c.id,
            Job.attempt == ended.c.attempt,
            Job.owner == ended.c.owner,
            Job.state == RUNNING,
        )
        .values(
            state=ended.c.state,
            owner=None,
            lease_until=None,
            failures=Job.failures + ended.c.blamed,
            error_code=ended.c.error_code,
            error_message=ended.c.error_message,
            published_at=case((again, null()), else_=Job.published_at),
            not_before=case((again, seconds_from_now(ended.c.delay_seconds)), else_=null()),
            finished_at=case((again, null()), else_=now()),
        )
        .returning(Job.id, Job.attempt, Job.started_at)
        .execution_options(synchronize_session=False)
    )


def insert_results() -> Insert:
    return insert(_table(Result))


def insert_attempts(session: Session) -> Insert:
    """Keep how attempts ended that did not succeed."""
    return insert_unless_there(session, AttemptRow)


# --- what people ask for -------------------------------------------------------------------


def cancel_jobs(chosen: ColumnElement[bool], limit: int | None = None) -> ReturningUpdate[UUID]:
    """Cancel the chosen jobs that are not finished; a running one may write no more."""
    unfinished = _asked(chosen & Job.state.in_(UNFINISHED), limit)
    return (
        update(Job)
        .where(unfinished, Job.state.in_(UNFINISHED))
        .values(state=JobState.CANCELLED, owner=None, lease_until=None, finished_at=now())
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )


def retry_jobs(
    chosen: ColumnElement[bool], states: Iterable[JobState], limit: int | None = None
) -> ReturningUpdate[UUID]:
    """Put the chosen jobs back in line with a clean slate, if they ended in one of `states`.

    Their attempt number stays: it is the fence, and is never used twice.
    """
    ended = Job.state.in_(list(states))
    assert set(states) <= RETRIABLE
    return (
        update(Job)
        .where(_asked(chosen & ended, limit), ended)
        .values(
            state=JobState.QUEUED,
            failures=0,
            error_code=None,
            error_message=None,
            published_at=None,
            not_before=None,
            finished_at=None,
        )
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )


def _asked(chosen: ColumnElement[bool], limit: int | None) -> ColumnElement[bool]:
    """So many of the chosen rows, locked in order of id: workers write some of them meanwhile."""
    asked = _locked(select(Job.id).where(chosen)).limit(limit).cte("asked")
    return Job.id.in_(select(asked.c.id))


# --- what the dispatcher asks for ----------------------------------------------------------


def requeue_expired_leases(limit: int) -> ReturningUpdate[UUID, int, datetime | None]:
    """Put jobs whose worker died back in line, unblamed; returns (id, attempt, started_at)."""
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


def _outstanding() -> ColumnElement[bool]:
    """As the index `ix_jobs_outstanding` has it."""
    return and_(Job.finished_at.is_(None), or_(Job.published_at.is_not(None), Job.state == RUNNING))


def published_long_ago(before: ColumnElement[datetime]) -> Select[str, str]:
    """The (model, lane) pairs with jobs that wait though they were published before."""
    return (
        select(Job.model, Job.lane)
        .where(_outstanding(), Job.published_at < before, Job.state == QUEUED)
        .distinct()
    )


def unpublish_queued(
    queue: tuple[str, Lane] | None, published_before: ColumnElement[datetime]
) -> Update:
    """Forget that waiting jobs were published: the broker no longer has their messages."""
    condition = [
        _outstanding(),
        Job.published_at <= published_before,
        Job.state == QUEUED,
    ]
    if queue is not None:
        model, lane = queue
        condition += [Job.model == model, Job.lane == lane]
    return (
        update(Job)
        .where(*condition)
        .values(published_at=None)
        .execution_options(synchronize_session=False)
    )


def outstanding_by_model() -> Select[str, int]:
    """How many unfinished jobs of each model the broker or a worker holds."""
    return select(Job.model, func.count()).where(_outstanding()).group_by(Job.model)


def next_to_publish(
    model: str, lane: Lane, limit: int, min_age_seconds: float = 0.0
) -> Select[UUID, int]:
    """The (id, number of characters) of jobs whose turn it is, the first in line first."""
    return (
        select(Job.id, Job.num_characters)
        .where(
            Job.state == QUEUED,
            Job.model == model,
            Job.lane == lane,
            Job.published_at.is_(None),
            Job.created_at <= seconds_from_now(-min_age_seconds),
            or_(Job.not_before.is_(None), Job.not_before <= now()),
        )
        .order_by(Job.turn_at, Job.deadline.asc().nulls_last(), Job.id)
        .limit(limit)
    )


def mark_published(job_ids: Sequence[UUID]) -> Update:
    waiting = _locked(select(Job.id).where(Job.id.in_(job_ids), Job.state == QUEUED)).cte("waiting")
    return (
        update(Job)
        .where(Job.id.in_(select(waiting.c.id)), Job.id.in_(job_ids))
        .values(published_at=now())
        .execution_options(synchronize_session=False)
    )


# --- workers and their leader --------------------------------------------------------------


def report_worker(
    session: Session,
    name: str,
    room: Mapping[str, int],
    num_running: int,
    alive_seconds: float,
    engines: list[dict[str, Any]] | None = None,
) -> None:
    """Say that a worker lives, what it runs, and how many jobs of each model it wants at hand."""
    alive_until = seconds_from_now(alive_seconds)
    known = session.execute(
        update(WorkerRow)
        .where(WorkerRow.name == name)
        .values(room=dict(room), engines=engines, num_running=num_running, alive_until=alive_until)
        .returning(WorkerRow.name)
        .execution_options(synchronize_session=False)
    )
    if known.scalar() is None:
        session.execute(
            insert(WorkerRow).values(
                name=name,
                room=dict(room),
                engines=engines,
                num_running=num_running,
                started_at=now(),
                alive_until=alive_until,
            )
        )


def forget_worker(name: str) -> Delete:
    return delete(WorkerRow).where(or_(WorkerRow.name == name, WorkerRow.alive_until < now()))


def live_workers() -> Select[WorkerRow]:
    return select(WorkerRow).where(WorkerRow.alive_until >= now()).order_by(WorkerRow.name)


def lead(session: Session, name: str, leader: str, seconds: float) -> bool:
    """Take or keep a leadership; False while another holds it."""
    until = seconds_from_now(seconds)
    mine = session.execute(
        update(Leadership)
        .where(
            Leadership.name == name,
            or_(Leadership.leader == leader, Leadership.until < now()),
        )
        .values(leader=leader, until=until)
        .returning(Leadership.name)
        .execution_options(synchronize_session=False)
    ).scalar()
    if mine is not None:
        return True
    first = session.execute(
        insert_unless_there(session, Leadership)
        .values(name=name, leader=leader, until=until)
        .returning(Leadership.name)
    ).scalar()
    return first is not None


def resign(name: str, leader: str) -> Delete:
    return delete(Leadership).where(Leadership.name == name, Leadership.leader == leader)


# --- batches ---------------------------------------------------------------------------------


def batch_by_run_key(run_key: str) -> Select[Batch]:
    return select(Batch).where(Batch.run_key == run_key)


def close_batch(batch_id: UUID) -> Update:
    return update(Batch).where(Batch.id == batch_id).values(closed_at=now())


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


def has_unfinished(batch_id: UUID) -> Select[bool]:
    return select(exists().where(Job.batch_id == batch_id, Job.state.not_in(FINISHED)))


def after(created_at: datetime, job_id: UUID) -> ColumnElement[bool]:
    """Rows that follow this one, oldest first."""
    row = literal(created_at, Job.created_at.type), literal(job_id, Job.id.type)
    return tuple_(Job.created_at, Job.id) > tuple_(*row)


def refresh_statistics(session: Session) -> None:
    """Let the planner know that a table has grown much; it would guess for a minute otherwise."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("ANALYZE jobs, payloads"))
    else:
        session.execute(text("PRAGMA optimize"))
