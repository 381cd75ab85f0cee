"""Submitting: validate, insert, commit, and then ring for the workers.

Once the commit has returned, the job is kept: whatever happens to the message,
the dispatcher sends another.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

from celery.exceptions import Reject
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import select
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from db import queries
from db.lane import Lane
from db.models import Batch, Job, Payload
from db.reading import FoundJob, find_job
from db.session import Database
from db.states import FINISHED, JobState
from tasks import settings
from tasks.catalog import Catalog
from tasks.contract import Contract
from tasks.errors import ContractError, IdempotencyConflict, Problem, Refused

log = logging.getLogger(__name__)

CHUNK = 1000
AWAY_SECONDS = 1.0  # before a message that could not be kept goes back


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job that is kept."""

    id: UUID
    is_new: bool  # False: this idempotency key was submitted before

    def find(self) -> FoundJob:
        """The job as it stands now."""
        found = find_job(self.id, database=settings.database())
        assert found is not None, f"job {self.id} is gone"
        return found

    def wait(self, timeout_seconds: float | None = None) -> FoundJob:
        """The job once it has finished; raises TimeoutError when that takes too long."""
        started = time.monotonic()
        pause_seconds = 0.05
        while (job := self.find()).state not in FINISHED:
            if timeout_seconds is not None and time.monotonic() - started > timeout_seconds:
                raise TimeoutError(f"job {self.id} is still {job.state}")
            time.sleep(pause_seconds)
            pause_seconds = min(1.0, pause_seconds * 1.5)
        return job


@dataclass(frozen=True, slots=True)
class SubmittedBatch:
    """A batch that is kept."""

    id: UUID
    name: str
    num_new: int
    num_known: int  # submitted before, under the same run key


def submit_contract(contract: Contract) -> SubmittedJob:
    """Keep one job and ring for a worker; raises Refused when it is not taken."""
    submitted, message = _keep(settings.database(), settings.catalog(), contract)
    if message is not None:
        _ring(settings.database(), *message)
    return submitted


def submit_message(contract: type[Contract], fields: dict[str, Any], message_id: str) -> str:
    """Keep the job of a Celery message; returns its id, which is the message's own
    (or, where that is no UUID, one made from it).

    A delivery that comes twice finds its job there. A refused contract is kept
    as a failed job, because nobody waits here to be told.
    """
    try:
        job_id = UUID(message_id)
    except ValueError:
        job_id = uuid5(NAMESPACE_OID, message_id)
    try:
        try:
            parsed = contract.parse(fields)
            submitted, message = _keep(settings.database(), settings.catalog(), parsed, job_id)
        except Refused as refusal:
            _keep_refusal(settings.database(), contract.task, job_id, fields, refusal)
            return str(job_id)
    except (DataError, IntegrityError):
        raise  # these values, and it would refuse them again
    except SQLAlchemyError as error:
        # Away, locked, full, or a standby that takes nothing. Nothing is kept yet, so
        # the message goes back: it is the only promise there is.
        log.warning("cannot keep a job", extra={"error": type(error).__name__})
        time.sleep(AWAY_SECONDS)
        raise Reject("the database is away", requeue=True) from error
    if message is not None:
        _ring(settings.database(), *message)
    return str(submitted.id)


def submit_batch(
    contracts: Iterable[Contract],
    *,
    name: str,
    run_key: str | None = None,
    tenant: str = "default",
    metadata: dict[str, str] | None = None,
    on_progress: Callable[[int], None] = lambda num_kept: None,
) -> SubmittedBatch:
    """Keep many jobs, streamed in chunks; the workers' dispatcher sends them out.

    It is rung for after each chunk; without Redis it finds them a little later.

    run_key makes a second call harmless: jobs that are there stay as they are,
    and jobs that a broken first call left out are added. The nth contract
    without an idempotency key of its own goes by its custom id, or else by n.
    Raises Refused at the first contract that names an unknown model or
    language; what was kept before it stays, and a second call goes on.
    """
    from tasks.notifications import Bell  # brings redis-py, for those who submit batches

    database, catalog = settings.database(), settings.catalog()
    batch = _open_batch(database, name, run_key, tenant, metadata or {})
    if batch.closed_at is not None:
        with database.read() as session:
            states = dict(session.execute(queries.job_states(batch.id)).all())
        return SubmittedBatch(batch.id, batch.name, 0, sum(states.values()))
    num_new = num_known = 0
    keyed = _with_keys(contracts, run_key)
    with Bell() as bell:
        for chunk in iter(lambda: list(islice(keyed, CHUNK)), []):
            jobs, payloads = _rows(catalog, chunk, batch.id)
            with database.write() as session:
                inserted = queries.insert_jobs(session, jobs)
                new_payloads = [payload for payload in payloads if payload["job_id"] in inserted]
                if new_payloads:
                    session.execute(queries.insert_payloads(), new_payloads)
            if inserted:
                bell.ring()
            num_new += len(inserted)
            num_known += len(jobs) - len(inserted)
            on_progress(num_new + num_known)
    with database.write() as session:
        session.execute(queries.close_batch(batch.id))
        if num_new >= CHUNK:
            queries.refresh_statistics(session)
    return SubmittedBatch(batch.id, batch.name, num_new, num_known)


def _keep(
    database: Database, catalog: Catalog, contract: Contract, job_id: UUID | None = None
) -> tuple[SubmittedJob, tuple[str, Lane, UUID] | None]:
    """Insert one job; also returns what to ring for, unless it was there."""
    job = _job_row(catalog, contract, job_id or uuid7(), None, contract.idempotency_key)
    payload = _payload_row(contract, job["id"])
    with database.write() as session:
        if queries.insert_jobs(session, [job]):
            session.execute(queries.insert_payloads(), [payload])
            return SubmittedJob(job["id"], True), (job["model"], Lane(job["lane"]), job["id"])
        known = _known_job(session, job, payload)
    return SubmittedJob(known, False), None


def _known_job(session: Session, job: dict[str, Any], payload: dict[str, Any]) -> UUID:
    """The id of the job that this one repeats; raises IdempotencyConflict if it differs."""
    key: str | None = job["idempotency_key"]
    same = Job.id == job["id"]
    if key is not None:
        same |= (Job.tenant == job["tenant"]) & (Job.idempotency_key == key)
    known = session.execute(
        select(Job.id, Job.task, Payload.contract)
        .join(Payload, Payload.job_id == Job.id)
        .where(same)
        .limit(1)
    ).one()
    if key is not None and (known.task, known.contract) != (job["task"], payload["contract"]):
        raise IdempotencyConflict(key)
    known_id: UUID = known.id
    return known_id


def _keep_refusal(
    database: Database, task: str, job_id: UUID, fields: dict[str, Any], refusal: Refused
) -> None:
    custom_id, tenant = _kept(fields.get("custom_id"), 256), _kept(fields.get("tenant"), 128)
    row = {
        **_EMPTY,
        "id": job_id,
        "task": task,
        "model": "",
        "state": JobState.FAILED,
        "lane": Lane.INTERACTIVE,
        "tenant": tenant or "default",
        "custom_id": custom_id,
        "num_characters": 0,
        "error_code": refusal.code,
        "error_message": _kept(str(refusal), 4000),
    }
    with database.write() as session:
        if queries.insert_jobs(session, [row]):
            payload = {"job_id": job_id, "contract": {}, "metadata": {}}
            session.execute(queries.insert_payloads(), [payload])
    log.warning("job refused", extra={"job_id": str(job_id), "task": task, "code": refusal.code})


def _kept(value: Any, max_characters: int) -> str | None:
    """As much of an unchecked value as a column takes."""
    if not isinstance(value, str):
        return None
    return value.replace("\x00", "").encode(errors="replace").decode()[:max_characters]


def _ring(database: Database, model: str, lane: Lane, job_id: UUID) -> None:
    from tasks.publisher import Message, publish

    try:
        publish([Message(model, lane, (job_id,))])
    except (BrokerError, OSError) as error:
        # The job is kept; the dispatcher publishes it when Redis is back.
        log.warning("job kept, not published yet", extra={"error": type(error).__name__})
        return
    try:
        with database.write() as session:
            queries.mark_published(session, [job_id])
    except SQLAlchemyError as error:
        # Kept and rung for. The dispatcher, which does not know, will ring once more.
        log.warning("job published, not marked", extra={"error": type(error).__name__})


def _open_batch(
    database: Database, name: str, run_key: str | None, tenant: str, metadata: dict[str, str]
) -> Batch:
    row = {
        "id": uuid7(),
        "name": name,
        "run_key": run_key,
        "tenant": tenant,
        "metadata": metadata,
        "closed_at": None,
    }
    with database.write() as session:
        session.execute(queries.insert_unless_there(session, Batch), [row])
        found = Batch.id == row["id"] if run_key is None else Batch.run_key == run_key
        return session.scalars(select(Batch).where(found)).one()


def _with_keys(
    contracts: Iterable[Contract], run_key: str | None
) -> Iterator[tuple[Contract, str | None]]:
    for number, contract in enumerate(contracts, start=1):
        if contract.idempotency_key is not None or run_key is None:
            yield contract, contract.idempotency_key
        else:
            yield contract, f"{run_key}/{contract.custom_id or number}"


def _rows(
    catalog: Catalog, chunk: list[tuple[Contract, str | None]], batch_id: UUID
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    jobs = [_job_row(catalog, contract, uuid7(), batch_id, key) for contract, key in chunk]
    payloads = [
        _payload_row(contract, job["id"]) for (contract, _), job in zip(chunk, jobs, strict=True)
    ]
    return jobs, payloads


# Every row of an insert names the same columns.
_EMPTY: dict[str, Any] = {
    "batch_id": None,
    "priority": 0,
    "idempotency_key": None,
    "language": None,
    "deadline": None,
    "time_limit_seconds": None,
    "error_code": None,
    "error_message": None,
}


def _job_row(
    catalog: Catalog, contract: Contract, job_id: UUID, batch_id: UUID | None, key: str | None
) -> dict[str, Any]:
    model = catalog.route(
        contract.task,
        contract.model,
        getattr(contract, "source_language", None),
        contract.output_language,
    )
    lane = contract.lane or (Lane.INTERACTIVE if batch_id is None else Lane.BULK)
    if key is not None and len(key) > 256:
        fault = f"makes the key {len(key)} characters long; at most 256 are taken"
        raise ContractError(contract.task, [Problem("custom_id", fault)])
    return {
        **_EMPTY,
        "id": job_id,
        "task": contract.task,
        "model": model.alias,
        "state": JobState.QUEUED,
        "lane": lane,
        "priority": contract.priority,
        "tenant": contract.tenant,
        "batch_id": batch_id,
        "custom_id": contract.custom_id,
        "idempotency_key": key,
        "language": contract.output_language,
        "num_characters": contract.num_characters,
        "deadline": contract.deadline,
        "time_limit_seconds": contract.time_limit_seconds,
    }


def _payload_row(contract: Contract, job_id: UUID) -> dict[str, Any]:
    return {"job_id": job_id, "contract": contract.work(), "metadata": contract.metadata}
