"""Job details: everything that is stored about a job besides its result."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import and_, select

from db.lane import Lane
from db.models import AttemptRow, Job, ModelCardRow, Payload, Result
from db.queries import quarantine
from db.reading.found_job import FoundJob
from db.reading.results import find_job
from db.session import Database, database_from_environment
from db.states import JobState

MAX_MESSAGES = 20  # messages that are shown with one job


@dataclass(frozen=True, slots=True)
class MessageSetAside:
    """A quarantined message that names a job, and the reason."""

    id: UUID
    reason: str  # a code of tasks.quarantine.Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDetails:
    """A job's place in line, its attempts and its origin."""

    job: FoundJob
    batch_id: UUID | None
    lane: Lane
    priority: int
    idempotency_key: str | None
    num_characters: int
    failures: int
    owner: str | None
    lease_until: datetime | None
    published_at: datetime | None
    not_before: datetime | None
    deadline: datetime | None
    contract: Mapping[str, Any]  # the task's own fields and the params that were given
    provenance: Mapping[str, Any] | None  # model card and settings; None until it has succeeded
    coverage: Mapping[str, Any] | None  # how much of the source was read; None if it does not apply
    messages: tuple[MessageSetAside, ...] = ()  # quarantined messages with its id, the newest first
    refused_output: str | None = None  # the last answer of a failed job, which its contract refused


def find_details(job_id: UUID, *, database: Database | None = None) -> JobDetails | None:
    """The details of one job; None if no job has that id."""
    database = database or database_from_environment()
    job = find_job(job_id, database=database)
    if job is None:
        return None
    statement = (
        select(
            Job,
            Payload.contract,
            Result.provenance,
            ModelCardRow.content,
            Result.coverage,
            AttemptRow.output,
        )
        .join(Payload, Payload.job_id == Job.id)
        .outerjoin(AttemptRow, and_(AttemptRow.job_id == Job.id, AttemptRow.attempt == Job.attempt))
        .outerjoin(Result, and_(Result.job_id == Job.id, Job.state == JobState.SUCCEEDED))
        .outerjoin(ModelCardRow, ModelCardRow.id == Result.model_card_id)
        .where(Job.id == job_id)
    )
    with database.read() as session:
        row, contract, provenance, model_card, coverage, refused = session.execute(statement).one()
        messages = session.execute(quarantine.quarantined_of(job_id, MAX_MESSAGES)).all()
    return JobDetails(
        job=job,
        batch_id=row.batch_id,
        lane=Lane(row.lane),
        priority=row.priority,
        idempotency_key=row.idempotency_key,
        num_characters=row.num_characters,
        failures=row.failures,
        owner=row.owner,
        lease_until=row.lease_until,
        published_at=row.published_at,
        not_before=row.not_before,
        deadline=row.deadline,
        contract=contract,
        provenance=None if provenance is None else {**(model_card or {}), **provenance},
        messages=tuple(MessageSetAside(*each) for each in messages),
        coverage=coverage,
        refused_output=refused,
    )
