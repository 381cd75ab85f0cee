"""Jobs for tests: rows that are inserted without a producer, and readers of the database."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from sqlalchemy import event, func, select, update
from sqlalchemy.exc import OperationalError
from uuid_utils.compat import uuid7

from db.clock import seconds_from_now
from db.lane import Lane
from db.models import Job, Payload, Result
from db.outcome import Answer, Fence, Outcome
from db.queries.jobs import claims, completion, submission
from db.session import Database
from db.states import JobState
from worker.committer import result_row

ROW: dict[str, Any] = {
    "task": "summarize",
    "model": "reports",
    "state": JobState.QUEUED,
    "lane": Lane.BULK,
    "priority": 0,
    "tenant": "default",
    "batch_id": None,
    "custom_id": None,
    "idempotency_key": None,
    "language": None,
    "num_characters": 8,
    "deadline": None,
    "time_limit_seconds": None,
    "error_code": None,
    "error_message": None,
}


def job_row(**fields: Any) -> dict[str, Any]:
    return {**ROW, "id": uuid7(), **fields}


def insert_batch(database: Database) -> UUID:
    """An empty batch of the default tenant."""
    batch_id = UUID(bytes=uuid7().bytes)
    row = {"id": batch_id, "name": "b", "run_key": None, "tenant": "default", "metadata": {}}
    with database.write() as session:
        submission.insert_batch(session, row)
    return batch_id


def insert_jobs(
    database: Database,
    rows: Iterable[dict[str, Any]],
    metadata: dict[str, str] | None = None,
    text: str = "three words long",
) -> list[UUID]:
    """Insert these rows with a payload each; returns their ids in order."""
    rows = list(rows)
    payloads = [
        {"job_id": row["id"], "contract": {"text": text}, "metadata": metadata or {}}
        for row in rows
    ]
    with database.write() as session:
        inserted = submission.insert_jobs(session, rows)
        session.execute(submission.insert_payloads(), payloads)
    assert inserted == {row["id"] for row in rows}
    return [row["id"] for row in rows]


def insert_job(
    database: Database, *, metadata: dict[str, str] | None = None, **fields: Any
) -> UUID:
    """Insert one job; columns may be given by the database's clock."""
    by_clock = {
        name: value for name, value in fields.items() if isinstance(value, seconds_from_now)
    }
    written = {name: value for name, value in fields.items() if name not in by_clock}
    (job_id,) = insert_jobs(database, [job_row(**written)], metadata)
    if by_clock:
        set_columns(database, [job_id], **by_clock)
    return job_id


def claim(
    database: Database, job_ids: Iterable[UUID], owner: str = "one", lease_seconds: float = 60
) -> list[Fence]:
    """Claim these jobs for an owner; returns the fences of those that were claimed."""
    with database.write() as session:
        rows = claims.claim(session, sorted(job_ids), owner, lease_seconds).all()
    return [Fence(row.id, row.attempt, owner) for row in rows]


def claimed_job(database: Database, owner: str = "one", **fields: Any) -> Fence:
    """A running job."""
    (fence,) = claim(database, [insert_job(database, **fields)], owner)
    return fence


def end_lease(database: Database, job_ids: Iterable[UUID]) -> None:
    """Move these leases into the past of the database's clock."""
    set_columns(database, job_ids, lease_until=seconds_from_now(-1))


def set_columns(database: Database, job_ids: Iterable[UUID], **columns: Any) -> None:
    with database.write() as session:
        session.execute(
            update(Job)
            .where(Job.id.in_(list(job_ids)))
            .values(**columns)
            .execution_options(synchronize_session=False)
        )


def job(database: Database, job_id: UUID) -> Job:
    """The present row of the job."""
    with database.read() as session:
        return session.scalars(select(Job).where(Job.id == job_id)).one()


def states(database: Database) -> dict[str, int]:
    """The number of jobs in each state."""
    with database.read() as session:
        return dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).all())


def results_per_job(database: Database) -> dict[UUID, int]:
    """The number of results of each job."""
    with database.read() as session:
        return dict(
            session.execute(
                select(Job.id, func.count(Result.job_id)).outerjoin(Result).group_by(Job.id)
            ).all()
        )


def payload(database: Database, job_id: UUID) -> Payload:
    with database.read() as session:
        return session.scalars(select(Payload).where(Payload.job_id == job_id)).one()


def answer(output: str = "an answer") -> Answer:
    return Answer(
        output=output,
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=2,
        provenance={"model_type": "fake"},
    )


def succeed(database: Database, job_id: UUID, said: Answer) -> None:
    """Give a queued job this answer."""
    (fence,) = claim(database, [job_id])
    outcome = Outcome.succeeded(fence, said)
    with database.write() as session:
        session.execute(completion.finish_attempts([outcome]))
        session.execute(completion.insert_results(), [result_row(outcome)])


@contextmanager
def refusing_commits(database: Database) -> Iterator[threading.Event]:
    """Within this context commits fail; the event is set at the first failure."""
    noticed = threading.Event()

    def refuse(*_: object) -> None:
        noticed.set()
        raise OperationalError("COMMIT", {}, Exception("the database is away"))

    event.listen(database.engine, "commit", refuse)
    try:
        yield noticed
    finally:
        event.remove(database.engine, "commit", refuse)


@contextmanager
def counting_statements(database: Database) -> Iterator[list[str]]:
    """The verb of each statement that runs within this context."""
    statements: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith("BEGIN"):
            statements.append(statement.split(maxsplit=1)[0])

    event.listen(database.engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        event.remove(database.engine, "before_cursor_execute", count)
