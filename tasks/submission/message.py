"""Contracts that arrive as Celery messages: each becomes a job, if need be a failed one.

While the database is away, only the message holds the job, so it waits here unacked.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from celery.exceptions import Reject
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError, StatementError

from db import audit
from tasks.configuration import settings
from tasks.contracts.contract import Contract
from tasks.errors import ContractError, Problem, Refused
from tasks.outage import Outage
from tasks.quarantine import EndedJob, Reason, job_id_of, keep, keep_ended
from tasks.submit import keep_job, publish_now, set_aside
from tasks.tracing import submitting

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0  # between two tries to keep the job of a message

HOLD_SECONDS = 30.0  # then the message goes back to the queue, behind the others

_giving_up = threading.Event()  # set when the process stops, which waits for no database

_away = Outage(log, "cannot keep jobs", "jobs are kept again")


def submit_request(
    contract: type[Contract], args: tuple[Any, ...], fields: dict[str, Any], request: Any
) -> str:
    """Store the job of a Celery task request; returns its id.

    Celery's `eta` becomes the earliest start, and its `expires` the deadline.
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
    """Store the job of a Celery message; returns its id.

    The id is the message's own or, if that is no UUID, one derived from it. A second delivery finds
    the job. A refused contract is stored as a failed job, because no caller waits for an error.
    While the database is away the message waits here, unacked.
    """
    return _persistently(
        lambda: _submit_message(
            contract, fields, job_id_of(message_id), not_before, not_after, traceparent
        )
    )


def give_up(**_: Any) -> None:
    """Stop waiting for the database: waiting messages are put back."""
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
        submitted, message = keep_job(
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
    except Exception as error:  # any error: another try would end the same
        return _keep_unkept(contract.task, job_id, fields, error)
    if message is not None:
        publish_now(settings.database(), *message)
    return str(submitted.id)


def _persistently(keep: Callable[[], str]) -> str:
    """Call `keep`, again while the database is away, locked, full, or a read-only standby.

    The message is still unacked. If this takes too long it is put back, behind the others, since
    the fault may be its own.
    """
    until = time.monotonic() + HOLD_SECONDS
    while True:
        try:
            job_id = keep()
        except SQLAlchemyError as error:
            _away.began(error)
            if time.monotonic() > until or _giving_up.wait(RETRY_SECONDS):
                raise Reject("the database is away", requeue=True) from None
        else:
            _away.ended()
            return job_id


def _is_refusal(error: SQLAlchemyError) -> bool:
    """Whether the database or its driver refuses these values, and would do so again."""
    if isinstance(error, DataError | IntegrityError) or type(error) is StatementError:
        return True
    # PostgreSQL's class 54: a limit of the server is exceeded.
    return str(getattr(getattr(error, "orig", None), "sqlstate", None) or "").startswith("54")


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def _keep_refusal(task: str, job_id: UUID, fields: dict[str, Any], refusal: Refused) -> str:
    failed_job = EndedJob(
        id=job_id,
        task=task,
        error_code=refusal.code,
        error_message=str(refusal),
        tenant=fields.get("tenant") or "default",
        custom_id=fields.get("custom_id"),
    )
    with settings.database().write() as session:
        keep_ended(session, [failed_job])
    log.warning("job refused", extra={"job_id": str(job_id), "task": task, "code": refusal.code})
    return str(job_id)


def _keep_unkept(task: str, job_id: UUID, fields: dict[str, Any], error: Exception) -> str:
    """Store as failed a job that the database, or our own code, cannot handle."""
    error_name = type(error).__name__
    failed_job = EndedJob(
        id=job_id,
        task=task,
        error_code=Reason.UNKEPT.value,
        error_message=(
            f"{Reason.UNKEPT.sentence}: {error_name}; look for its message in the quarantine"
        ),
    )
    log.error("job not kept", extra={"job_id": str(job_id), "task": task, "error": error_name})
    with settings.database().write() as session:
        keep(session, [set_aside(task, job_id, fields, Reason.UNKEPT)])
        keep_ended(session, [failed_job])
    return str(job_id)
