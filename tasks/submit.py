"""Submitting: validate, insert, commit, and then notify the workers.

Once the commit has returned, the job is kept: whatever happens to the message,
the dispatcher sends another.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from uuid import UUID

from celery.exceptions import Reject
from kombu.utils.json import dumps
from sqlalchemy import select
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from db import audit
from db.lane import Lane
from db.models import Batch, Job, Payload
from db.queries import dispatch, inserts, submission
from db.reading import FoundJob, find_job
from db.session import Database
from db.states import FINISHED, JobState
from tasks import settings
from tasks.catalog import Catalog
from tasks.contract import Contract
from tasks.errors import ContractError, IdempotencyConflict, Problem, Refused
from tasks.first_seen import FirstSeen
from tasks.outage import Outage
from tasks.previous_job import continued
from tasks.quarantine import EndedJob, Reason, SetAside, job_id_of, keep, keep_ended
from tasks.queues import SUBMISSIONS
from tasks.tracing import submitting

log = logging.getLogger(__name__)

CHUNK = 1000
ROUTE = "route"  # of a translation by way of several models, beside the contract's own fields
RETRY_SECONDS = 1.0  # between two tries to keep the job of a message
HOLD_SECONDS = 30.0  # of trying; then the message goes back, behind the others

_giving_up = threading.Event()  # this process stops, and waits for no database
_away = Outage(log, "cannot keep jobs", "jobs are kept again")


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
    """Keep one job and publish it; raises Refused when it is not taken."""
    with submitting(contract.task) as traceparent:
        submitted, message = _keep(
            settings.database(), settings.catalog(), contract, traceparent=traceparent
        )
        if message is not None:
            _ring(settings.database(), *message)
    return submitted


def submit_request(
    contract: type[Contract], args: tuple[Any, ...], fields: dict[str, Any], request: Any
) -> str:
    """Keep the job of a Celery task's request; returns its id.

    Celery's `eta` is when the job may begin, and its `expires` the deadline.
    """
    if args:
        fault = f"{len(args)} positional given; name every field, as in text=..."
        refusal = ContractError(contract.task, [Problem("args", fault)])
        return _persistently(
            lambda: _keep_refusal(contract.task, job_id_of(request.id), fields, refusal)
        )
    with (
        audit.acting_as(f"celery {request.origin or 'unnamed'}"),
        submitting(contract.task, request.get("traceparent")) as traceparent,
    ):
        return submit_message(
            contract,
            fields,
            request.id,
            not_before=_instant(request.get("not_before")),
            not_after=_instant(request.get("not_after")),
            traceparent=traceparent,
        )


def submit_message(
    contract: type[Contract],
    fields: dict[str, Any],
    message_id: str,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
    traceparent: str | None = None,
) -> str:
    """Keep the job of a Celery message; returns its id, which is the message's own
    (or, where that is no UUID, one made from it).

    A delivery that comes twice finds its job there. A refused contract is kept
    as a failed job, because nobody waits here to be told. While the database is
    away the message waits here, unacked.
    """
    return _persistently(
        lambda: _submit_message(
            contract, fields, job_id_of(message_id), not_before, not_after, traceparent
        )
    )


def give_up(**_: Any) -> None:
    """Let no message wait for the database any longer: it goes back."""
    _giving_up.set()


def _submit_message(
    contract: type[Contract],
    fields: dict[str, Any],
    job_id: UUID,
    not_before: datetime | None,
    not_after: datetime | None,
    traceparent: str | None,
) -> str:
    try:
        parsed = contract.parse(fields)
        submitted, message = _keep(
            settings.database(),
            settings.catalog(),
            parsed,
            job_id,
            not_before,
            not_after,
            traceparent,
        )
    except Refused as refusal:
        return _keep_refusal(contract.task, job_id, fields, refusal)
    except SQLAlchemyError as error:
        if not _is_refusal(error):
            raise
        return _keep_unkept(contract.task, job_id, fields, error)
    except Exception as error:  # whatever it is: it would be the same again
        return _keep_unkept(contract.task, job_id, fields, error)
    if message is not None:
        _ring(settings.database(), *message)
    return str(submitted.id)


def _persistently(keep: Callable[[], str]) -> str:
    """Do it, again while the database is away, locked, full, or a standby that takes nothing.

    Nothing is kept yet, so the message is the only promise there is: it goes back if this
    takes too long, behind the others, for the fault might be its own.
    """
    until = time.monotonic() + HOLD_SECONDS
    while True:
        try:
            kept = keep()
        except SQLAlchemyError as error:
            _away.began(error)
            if time.monotonic() > until or _giving_up.wait(RETRY_SECONDS):
                raise Reject("the database is away", requeue=True) from None
        else:
            _away.ended()
            return kept


def _is_refusal(error: SQLAlchemyError) -> bool:
    """Whether these values are refused, by the database or by its driver, and would be again."""
    if isinstance(error, DataError | IntegrityError) or type(error) is StatementError:
        return True
    # Of PostgreSQL's classes, 54 is what exceeds a limit of the server's.
    return str(getattr(getattr(error, "orig", None), "sqlstate", None) or "").startswith("54")


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def submit_batch(
    contracts: Iterable[Contract],
    *,
    name: str,
    run_key: str | None = None,
    tenant: str = "default",
    metadata: dict[str, str] | None = None,
    on_progress: Callable[[int], None] = lambda num_kept: None,
    is_complete: Callable[[], bool] = lambda: True,
) -> SubmittedBatch:
    """Keep many jobs, streamed in chunks; the workers' dispatcher sends them out.

    It is notified after each chunk; without Redis it finds them a little later.

    run_key makes a second call harmless: jobs that are there stay as they are,
    and jobs that a broken first call left out are added. The nth contract
    without an idempotency key of its own goes by its custom id, or else by n.
    Raises Refused at the first contract that names an unknown model,
    language or previous job, and DuplicateId where two contracts of the call have the same
    custom id (or idempotency key, where they bring their own); what was kept
    before it stays, and a second call goes on. is_complete is called after the
    last contract: False leaves the batch open for a second call to add to.
    """
    from tasks.notifications import Notifier  # brings redis-py, for those who submit batches

    database, catalog = settings.database(), settings.catalog()
    batch = _open_batch(database, catalog, name, run_key, tenant, metadata or {})
    if batch.closed_at is not None:
        with database.read() as session:
            states = dict(session.execute(submission.job_states(batch.id)).all())
        return SubmittedBatch(batch.id, batch.name, 0, sum(states.values()))
    num_new = num_known = 0
    keyed = _with_keys(contracts, run_key)
    with Notifier() as notifier, submitting("batch") as traceparent:
        for chunk in iter(lambda: list(islice(keyed, CHUNK)), []):
            jobs, payloads = _rows(
                catalog,
                [(continued(database, catalog, contract), key) for contract, key in chunk],
                batch.id,
            )
            for job in jobs if traceparent is not None else ():
                job["traceparent"] = traceparent
            with database.write() as session:
                inserted = submission.insert_jobs(session, jobs)
                new_payloads = [payload for payload in payloads if payload["job_id"] in inserted]
                if new_payloads:
                    session.execute(submission.insert_payloads(), new_payloads)
            if inserted:
                notifier.notify()
            num_new += len(inserted)
            num_known += len(jobs) - len(inserted)
            on_progress(num_new + num_known)
    complete = is_complete()
    with database.write() as session:
        if complete:
            session.execute(submission.close_batch(batch.id))
        if num_new >= CHUNK:
            submission.refresh_statistics(session)
    return SubmittedBatch(batch.id, batch.name, num_new, num_known)


def _keep(
    database: Database,
    catalog: Catalog,
    contract: Contract,
    job_id: UUID | None = None,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
    traceparent: str | None = None,
) -> tuple[SubmittedJob, tuple[str, Lane, UUID] | None]:
    """Insert one job; also returns what to publish, unless it was there, or is to wait.

    job_id: of the message that it came by
    """
    contract = continued(database, catalog, contract)
    job = _job_row(catalog, contract, job_id or uuid7(), None, contract.idempotency_key)
    job["not_before"] = not_before
    job["traceparent"] = traceparent
    if not_after is not None:
        job["deadline"] = min(not_after, job["deadline"] or not_after)
    payload = _payload_row(catalog, contract, job["id"])
    with database.write() as session:
        if submission.insert_jobs(session, [job]):
            session.execute(submission.insert_payloads(), [payload])
            _append_submit(session, catalog, {"jobs": [str(job["id"])]})
            publication = (
                (job["model"], Lane(job["lane"]), job["id"]) if not_before is None else None
            )
            return SubmittedJob(job["id"], True), publication
        known = _known_job(session, job, payload)
        if known.id == job_id and _differs(known, job, payload):
            # It was sent as a message, so nobody waits to be told; the job under this id is
            # what came first.
            keep(session, [_conflict(job, payload)])
            log.warning("another job has this id", extra={"job_id": str(job_id)})
    return SubmittedJob(known.id, False), None


def _known_job(session: Session, job: dict[str, Any], payload: dict[str, Any]) -> Any:
    """The job that this one repeats; raises IdempotencyConflict if it differs by its key."""
    key: str | None = job["idempotency_key"]
    same = Job.id == job["id"]
    if key is not None:
        same |= (Job.tenant == job["tenant"]) & (Job.idempotency_key == key)
    known = session.execute(
        select(Job.id, Job.task, Payload.contract, Payload.pruned_at)
        .join(Payload, Payload.job_id == Job.id)
        .where(same)
        .order_by((Job.id == job["id"]).desc())
        .limit(1)
    ).one()
    if key is not None and known.id != job["id"] and _differs(known, job, payload):
        raise IdempotencyConflict(key)
    return known


def _differs(known: Any, job: dict[str, Any], payload: dict[str, Any]) -> bool:
    """Whether the job that is known was asked something else, as far as that is still kept."""
    if known.task != job["task"]:
        return True
    if known.pruned_at is not None:
        return False
    return _as_given(known.contract) != _as_given(payload["contract"])


def _conflict(job: dict[str, Any], payload: dict[str, Any]) -> SetAside:
    return _set_aside(job["task"], job["id"], payload["contract"], Reason.ID_CONFLICT)


def _set_aside(task: str, job_id: UUID, fields: dict[str, Any], reason: Reason) -> SetAside:
    """The message that these fields came by, as Celery's body."""
    body = dumps([[], fields, {}]).encode()
    return SetAside(
        queue=SUBMISSIONS,
        reason=reason,
        body=body,
        num_bytes=len(body),
        task=f"tasks.{task}",
        job_id=job_id,
    )


def _keep_refusal(task: str, job_id: UUID, fields: dict[str, Any], refusal: Refused) -> str:
    ended = EndedJob(
        id=job_id,
        task=task,
        error_code=refusal.code,
        error_message=str(refusal),
        tenant=fields.get("tenant") or "default",
        custom_id=fields.get("custom_id"),
    )
    with settings.database().write() as session:
        keep_ended(session, [ended])
    log.warning("job refused", extra={"job_id": str(job_id), "task": task, "code": refusal.code})
    return str(job_id)


def _keep_unkept(task: str, job_id: UUID, fields: dict[str, Any], error: Exception) -> str:
    """Keep as failed a job that the database, or our own code, stumbles over."""
    what = type(error).__name__
    ended = EndedJob(
        id=job_id,
        task=task,
        error_code=Reason.UNKEPT.value,
        error_message=f"{Reason.UNKEPT.sentence}: {what}; look for its message in the quarantine",
    )
    log.error("job not kept", extra={"job_id": str(job_id), "task": task, "error": what})
    with settings.database().write() as session:
        keep(session, [_set_aside(task, job_id, fields, Reason.UNKEPT)])
        keep_ended(session, [ended])
    return str(job_id)


def _ring(database: Database, model: str, lane: Lane, job_id: UUID) -> None:
    from tasks.publisher import Message, publish

    try:
        publish([Message(model, lane, (job_id,))])
    except Exception as error:  # Redis away, its password refused, an address that is none
        # The job is kept, so to fail here would only have it submitted twice; the
        # dispatcher publishes it when Redis is back.
        log.warning("job kept, not published yet", extra={"error": type(error).__name__})
        return
    try:
        with database.write() as session:
            dispatch.mark_published(session, [job_id])
    except SQLAlchemyError as error:
        # Kept and published. The dispatcher, which does not know, will publish it once more.
        log.warning("job published, not marked", extra={"error": type(error).__name__})


def _append_submit(session: Session, catalog: Catalog, objects: dict[str, Any]) -> None:
    if catalog.audits_submits:
        audit.append(session, audit.Act.SUBMIT, objects)


def _open_batch(
    database: Database,
    catalog: Catalog,
    name: str,
    run_key: str | None,
    tenant: str,
    metadata: dict[str, str],
) -> Batch:
    """The batch by its run key, or a new one; one entry in the audit stands for all its jobs.

    That is written before them: a submit that dies in the middle has left jobs, too.
    """
    row = {
        "id": uuid7(),
        "name": name,
        "run_key": run_key,
        "tenant": tenant,
        "metadata": metadata,
        "closed_at": None,
    }
    with database.write() as session:
        session.execute(inserts.insert_unless_there(session, Batch), [row])
        found = Batch.id == row["id"] if run_key is None else Batch.run_key == run_key
        batch = session.scalars(select(Batch).where(found)).one()
        if batch.closed_at is None:
            _append_submit(session, catalog, {"batch": str(batch.id)})
        return batch


def _with_keys(
    contracts: Iterable[Contract], run_key: str | None
) -> Iterator[tuple[Contract, str | None]]:
    seen = FirstSeen()
    for number, contract in enumerate(contracts, start=1):
        key, place = contract.idempotency_key, f"contract {number}"
        # Who brings a key tells jobs apart by it, and may use a custom id for several.
        if key is None and contract.custom_id is not None:
            seen.require_new("custom_id", contract.custom_id, place, contract.tenant)
        if key is None and run_key is not None:
            key = f"{run_key}/{contract.custom_id or f'#{number}'}"
        if key is not None:
            seen.require_new("idempotency_key", key, place, contract.tenant)
        yield contract, key


def _rows(
    catalog: Catalog, chunk: list[tuple[Contract, str | None]], batch_id: UUID
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    jobs = [_job_row(catalog, contract, uuid7(), batch_id, key) for contract, key in chunk]
    payloads = [
        _payload_row(catalog, contract, job["id"])
        for (contract, _), job in zip(chunk, jobs, strict=True)
    ]
    return jobs, payloads


# Every row of an insert names the same columns.
_EMPTY: dict[str, Any] = {
    "batch_id": None,
    "priority": 0,
    "idempotency_key": None,
    "language": None,
    "not_before": None,
    "deadline": None,
    "time_limit_seconds": None,
    "traceparent": None,
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
        contract.language_of_output,
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
        "language": contract.language_of_output,
        "num_characters": contract.num_characters,
        "deadline": contract.deadline,
        "time_limit_seconds": contract.time_limit_seconds,
    }


def _payload_row(catalog: Catalog, contract: Contract, job_id: UUID) -> dict[str, Any]:
    work = contract.work()
    legs = catalog.legs(
        contract.task,
        contract.model,
        getattr(contract, "source_language", None),
        contract.language_of_output,
    )
    if legs:
        # Kept with the job: a worker with another catalog takes it up where it was.
        work[ROUTE] = [leg.to_json() for leg in legs]
    return {
        "job_id": job_id,
        "contract": work,
        "metadata": contract.metadata,
        "previous_job_id": getattr(contract, "previous_job_id", None),
    }


def _as_given(contract: dict[str, Any]) -> dict[str, Any]:
    """A kept contract without what we added."""
    return {name: value for name, value in contract.items() if name != ROUTE}
