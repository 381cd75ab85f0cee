"""Quarantine: messages that could not be taken, kept for an operator (a dead-letter store).

Any invalid message in our queues is taken off, so that it blocks nothing. It is stored with its
reason, place and time. If a job's id can be read from it, that job is stored too, as failed.
"""

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self
from uuid import NAMESPACE_OID, UUID, uuid5

from sqlalchemy import event, update
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from db.clock import now
from db.lane import Lane
from db.models import Job
from db.queries import quarantine
from db.queries.jobs import submission
from db.states import JobState

MAX_BODY_BYTES = 256 * 2**10  # of one message that are kept


class Reason(StrEnum):
    """The reason that a message could not be taken, with a sentence for people."""

    sentence: str

    def __new__(cls, code: str, sentence: str) -> Self:
        reason = str.__new__(cls, code)
        reason._value_ = code
        reason.sentence = sentence
        return reason

    TOO_LARGE = "too_large", "it is larger than any message may be"
    NOT_JSON = "not_json", "it is not JSON in UTF-8"
    NOT_AN_ENVELOPE = "not_an_envelope", "it is not the JSON object that Celery sends"
    BAD_BODY = "bad_body", "its body cannot be decoded"
    BAD_CONTENT = "bad_content", "its content type is refused; only JSON is taken"
    BAD_HEADERS = "bad_headers", "a header is of the wrong type"
    NO_ID = "no_id", "it has no id that can be used"
    NO_TASK = "no_task", "it names no task"
    UNKNOWN_TASK = "unknown_task", "it names a task that this worker does not have"
    BAD_ARGUMENTS = (
        "bad_arguments",
        "its body is not [args, kwargs, embed], or it has a field `self`",
    )
    BAD_JOB_IDS = "bad_job_ids", "it does not name jobs by their ids"
    UNKNOWN_JOBS = "unknown_jobs", "it names jobs that are not in this database"
    ID_CONFLICT = "id_conflict", "a job with other contents has the same id"
    UNKEPT = "unkept", "its job could not be kept"
    REVOKED = "revoked", "it was revoked before it was taken"
    WRONG_TYPE = "wrong_type", "something that is no list stood where a queue should be"
    UNEXPECTED = "unexpected", "the worker could not take it"


def job_id_of(message_id: str) -> UUID:
    """The job id of a message: the message's own id or, if that is no UUID, one derived from it."""
    try:
        return UUID(message_id)
    except ValueError:
        return uuid5(NAMESPACE_OID, message_id.encode(errors="replace").decode())


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedJob:
    """A job that is stored as ended because it could never start."""

    id: UUID
    task: str
    error_code: str | None
    error_message: str | None
    state: JobState = JobState.FAILED
    tenant: str = "default"
    custom_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """A message for the quarantine, and the job that it would have been."""

    queue: str
    reason: Reason
    body: bytes
    num_bytes: int
    task: str | None = None
    origin: str | None = None
    job_id: UUID | None = None
    job: EndedJob | None = None
    id: UUID = field(default_factory=uuid7)
    arrived_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def to_json(self, max_body_bytes: int = MAX_BODY_BYTES) -> bytes:
        fields = asdict(self) | {"body": base64.b64encode(self.body[:max_body_bytes]).decode()}
        return json.dumps(fields, default=str).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Parse the text that `to_json` made.

        Raises ValueError, KeyError or TypeError for others.
        """
        fields = json.loads(text)
        job = fields["job"]
        return cls(
            **fields
            | {
                "id": UUID(fields["id"]),
                "reason": Reason(fields["reason"]),  # type: ignore[call-arg]  # by its value
                "body": base64.b64decode(fields["body"]),
                "arrived_at": datetime.fromisoformat(fields["arrived_at"]),
                "job_id": fields["job_id"] and UUID(fields["job_id"]),
                "job": job
                and EndedJob(
                    **job | {"id": UUID(job["id"]), "state": JobState(job["state"])},
                ),
            }
        )

    def row(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "arrived_at": self.arrived_at,
            "queue": storable(self.queue, 256) or "",
            "reason": self.reason.value,
            "task": storable(self.task, 256),
            "origin": storable(self.origin, 256),
            "job_id": self.job_id or (self.job and self.job.id),
            "num_bytes": self.num_bytes,
            "body": self.body[:MAX_BODY_BYTES],
        }


def keep(session: Session, messages: Iterable[SetAside]) -> None:
    """Write messages, and the jobs that they would have been, into the quarantine."""
    messages = list(messages)
    if not messages:
        return
    quarantine.insert_quarantined(session, [message.row() for message in messages])
    keep_ended(session, [message.job for message in messages if message.job is not None])


# Called with the quarantined jobs after their commit, in the thread that committed; a worker counts
# them. None may raise.
ended_listeners: list[Callable[[Sequence[EndedJob]], None]] = []


def keep_ended(session: Session, jobs: Iterable[EndedJob]) -> None:
    """Insert jobs that ended before they started; jobs with existing ids are unchanged."""
    by_id = {job.id: job for job in jobs}
    if not by_id:
        return
    inserted = submission.insert_jobs(session, [_row(job) for job in by_id.values()])
    if not inserted:
        return
    payloads = [{"job_id": job_id, "contract": {}, "metadata": {}} for job_id in inserted]
    session.execute(submission.insert_payloads(), payloads)
    session.execute(
        update(Job)
        .where(Job.id.in_(inserted))
        .values(finished_at=now())
        .execution_options(synchronize_session=False)
    )
    if ended_listeners:
        ended = [by_id[job_id] for job_id in inserted]
        event.listen(session, "after_commit", lambda _: _tell(ended), once=True)


def _tell(ended: Sequence[EndedJob]) -> None:
    for listener in tuple(ended_listeners):
        listener(ended)


def storable(value: Any, max_characters: int) -> str | None:
    """The part of an unchecked value that a column can store."""
    if not isinstance(value, str):
        return None
    return value.replace("\x00", "").encode(errors="replace").decode()[:max_characters]


def _row(job: EndedJob) -> dict[str, Any]:
    return {
        "id": job.id,
        "task": storable(job.task, 32),
        "model": "",
        "state": job.state,
        "lane": Lane.INTERACTIVE,
        "priority": 0,
        "tenant": storable(job.tenant, 128) or "default",
        "batch_id": None,
        "custom_id": storable(job.custom_id, 256),
        "idempotency_key": None,
        "language": None,
        "num_characters": 0,
        "not_before": None,
        "deadline": None,
        "time_limit_seconds": None,
        "error_code": job.error_code,
        "error_message": storable(job.error_message, 4000),
    }
