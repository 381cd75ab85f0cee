"""Submit: validate, insert, commit, and then publish.

Once the commit has returned, the job is kept: whatever happens to the message, the dispatcher sends
another.
"""

import logging
from datetime import datetime
from typing import Any
from uuid import UUID

from kombu.utils.json import dumps
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from db import audit
from db.encryption.key_check import require_keys_once
from db.lane import Lane
from db.models import Job, Payload
from db.queries.jobs import dispatch, submission
from db.session import Database
from tasks.configuration import settings
from tasks.configuration.catalog import Catalog
from tasks.contracts.contract import Contract
from tasks.errors import IdempotencyConflict
from tasks.quarantine import Reason, SetAside, keep
from tasks.queues import SUBMISSIONS
from tasks.submission.previous_job import continued
from tasks.submission.rows import as_given, job_row, payload_row
from tasks.submission.submitted import SubmittedJob
from tasks.tracing import submitting

log = logging.getLogger(__name__)


def submit_contract(contract: Contract) -> SubmittedJob:
    """Store one job and publish it; raises Refused if it is not taken."""
    with submitting(contract.task) as traceparent:
        submitted, message = keep_job(
            settings.database(), settings.catalog(), contract, traceparent=traceparent
        )
        if message is not None:
            publish_now(settings.database(), *message)
    return submitted


def keep_job(
    database: Database,
    catalog: Catalog,
    contract: Contract,
    job_id: UUID | None = None,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
    traceparent: str | None = None,
) -> tuple[SubmittedJob, tuple[str, Lane, UUID] | None]:
    """Insert one job; also returns what to publish, unless the job existed or must wait.

    job_id: of the message that it arrived by
    """
    require_keys_once(database)
    contract = continued(database, catalog, contract)
    job = job_row(catalog, contract, job_id or uuid7(), None, contract.idempotency_key)
    job["not_before"] = not_before
    job["traceparent"] = traceparent
    if not_after is not None:
        job["deadline"] = min(not_after, job["deadline"] or not_after)
    payload = payload_row(catalog, contract, job["id"])
    with database.write() as session:
        if submission.insert_jobs(session, [job]):
            session.execute(submission.insert_payloads(), [payload])
            append_submit(session, catalog, {"jobs": [str(job["id"])]})
            publication = (
                (job["model"], Lane(job["lane"]), job["id"]) if not_before is None else None
            )
            return SubmittedJob(job["id"], True), publication
        existing = _existing_job(session, job, payload)
        if existing.id == job_id and _differs(existing, job, payload):
            # The job was sent as a message, so no caller waits for an error; the first job under
            # this id stays.
            keep(session, [_conflict(job, payload)])
            log.warning("another job has this id", extra={"job_id": str(job_id)})
    return SubmittedJob(existing.id, False), None


def _existing_job(session: Session, job: dict[str, Any], payload: dict[str, Any]) -> Any:
    """The job that this one repeats; raises IdempotencyConflict if it differs."""
    key: str | None = job["idempotency_key"]
    same = Job.id == job["id"]
    if key is not None:
        same |= (Job.tenant == job["tenant"]) & (Job.idempotency_key == key)
    existing = session.execute(
        select(Job.id, Job.task, Payload.contract, Payload.pruned_at)
        .join(Payload, Payload.job_id == Job.id)
        .where(same)
        .order_by((Job.id == job["id"]).desc())
        .limit(1)
    ).one()
    if key is not None and existing.id != job["id"] and _differs(existing, job, payload):
        raise IdempotencyConflict(key)
    return existing


def _differs(existing: Any, job: dict[str, Any], payload: dict[str, Any]) -> bool:
    """Whether the existing job has another contract, as far as that is still stored."""
    if existing.task != job["task"]:
        return True
    if existing.pruned_at is not None:
        return False
    return as_given(existing.contract) != as_given(payload["contract"])


def _conflict(job: dict[str, Any], payload: dict[str, Any]) -> SetAside:
    return set_aside(job["task"], job["id"], payload["contract"], Reason.ID_CONFLICT)


def set_aside(task: str, job_id: UUID, fields: dict[str, Any], reason: Reason) -> SetAside:
    """The message that these fields arrived by, in the form of Celery's body."""
    body = dumps([[], fields, {}]).encode()
    return SetAside(
        queue=SUBMISSIONS,
        reason=reason,
        body=body,
        num_bytes=len(body),
        task=f"tasks.{task}",
        job_id=job_id,
    )


def publish_now(database: Database, model: str, lane: Lane, job_id: UUID) -> None:
    from tasks.submission.publisher import JobMessage, publish

    try:
        publish([JobMessage(model, lane, (job_id,))])
    except Exception as error:  # Redis is away, its password is refused, the address is not valid
        # The job is stored, so an error would only make the caller submit it twice; the dispatcher
        # publishes it when Redis is back.
        log.warning(
            "job kept, not published yet: Redis did not take its message; a worker finds it "
            "in the database",
            extra={"error": type(error).__name__},
        )
        return
    try:
        with database.write() as session:
            dispatch.mark_published(session, [job_id])
    except SQLAlchemyError as error:
        # The job is stored and published. The dispatcher does not know this and will publish it
        # once more.
        log.warning("job published, not marked", extra={"error": type(error).__name__})


def append_submit(session: Session, catalog: Catalog, objects: dict[str, Any]) -> None:
    if catalog.audits_submits:
        audit.append(session, audit.Act.SUBMIT, objects)
