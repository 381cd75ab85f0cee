"""The tables.

`jobs` is the hot path, so its rows are small; the texts of users and of results are in `payloads`
and `results`.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from db.clock import Instant, now
from db.encryption.sealed import SealedBytes, SealedJSON, SealedText
from db.lane import Lane
from db.states import JobState

# none_as_null: None is SQL's NULL, never JSON's.
_JSON = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


OUTSTANDING = "finished_at IS NULL AND (published_at IS NOT NULL OR state = 'running')"
ENDED = "state IN ('succeeded', 'failed')"


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy's declarative contract)
        str: String(256),
        UUID: Uuid(),
        datetime: Instant(),
        dict[str, Any]: JSON(none_as_null=True).with_variant(
            JSONB(none_as_null=True), "postgresql"
        ),
        list[str]: JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql"),
        list[dict[str, Any]]: JSON(none_as_null=True).with_variant(
            JSONB(none_as_null=True), "postgresql"
        ),
    }


def _one_of(column: str, values: type[JobState] | type[Lane]) -> CheckConstraint:
    allowed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({allowed})", name=column)


class Batch(Base):
    """A named set of jobs that were submitted together."""

    __tablename__ = "batches"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(index=True)
    run_key: Mapped[str | None] = mapped_column(unique=True)
    tenant: Mapped[str]
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    created_at: Mapped[datetime] = mapped_column(default=now())
    # Set when every job of the batch has been inserted; until then it grows.
    closed_at: Mapped[datetime | None]


class Job(Base):
    """One submission: its place in line, its owner and its outcome."""

    __tablename__ = "jobs"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    task: Mapped[str] = mapped_column(String(32))
    model: Mapped[str] = mapped_column(String(128))
    state: Mapped[str] = mapped_column(String(16))
    lane: Mapped[str] = mapped_column(String(16))
    priority: Mapped[int]
    tenant: Mapped[str] = mapped_column(String(128))
    batch_id: Mapped[UUID | None] = mapped_column(ForeignKey("batches.id"))
    custom_id: Mapped[str | None]
    idempotency_key: Mapped[str | None]
    language: Mapped[str | None] = mapped_column(String(32))  # of the output
    num_characters: Mapped[int]  # of the input: messages carry jobs of like length
    time_limit_seconds: Mapped[float | None]  # of one attempt
    traceparent: Mapped[str | None] = mapped_column(String(64))  # W3C's, of the submitter

    attempt: Mapped[int] = mapped_column(server_default="0")
    failures: Mapped[int] = mapped_column(server_default="0")
    owner: Mapped[str | None] = mapped_column(String(128))
    lease_until: Mapped[datetime | None]

    created_at: Mapped[datetime] = mapped_column(default=now())
    # The job's place in line: its time of submission, moved by its priority. The value is constant,
    # so that a job that waits long enough comes first.
    turn_at: Mapped[datetime] = mapped_column(default=now())
    published_at: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    deadline: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    error_code: Mapped[str | None] = mapped_column(String(64))
    error_message: Mapped[str | None] = mapped_column(Text)

    # When a text of the job was deleted, by retention and by erasure. The columns are here and not
    # only beside the texts, since a requeue must see them in the row that it changes.
    pruned_at: Mapped[datetime | None]
    erased_at: Mapped[datetime | None]

    __table_args__ = (
        _one_of("state", JobState),
        _one_of("lane", Lane),
        Index("uq_jobs_tenant_idempotency_key", "tenant", "idempotency_key", unique=True),
        Index("ix_jobs_batch_id_state", "batch_id", "state"),
        Index("ix_jobs_custom_id", "custom_id"),
        Index("ix_jobs_created_at_id", "created_at", "id"),
        # The dispatcher reads this index: queued jobs, in order of dispatch.
        Index(
            "ix_jobs_unpublished",
            "model",
            "lane",
            "turn_at",
            "id",
            sqlite_where=text("state = 'queued' AND published_at IS NULL"),
            postgresql_where=text("state = 'queued' AND published_at IS NULL"),
        ),
        # The jobs that the dispatcher has published already.
        Index(
            "ix_jobs_outstanding",
            "model",
            "published_at",
            sqlite_where=text(OUTSTANDING),
            postgresql_where=text(OUTSTANDING),
        ),
        Index(
            "ix_jobs_deadline",
            "deadline",
            sqlite_where=text("deadline IS NOT NULL AND finished_at IS NULL"),
            postgresql_where=text("deadline IS NOT NULL AND finished_at IS NULL"),
        ),
        Index(
            "ix_jobs_running",
            "lease_until",
            sqlite_where=text("state = 'running'"),
            postgresql_where=text("state = 'running'"),
        ),
        # The ended jobs of a model and task by time: `tidemill quality` reads samples of them.
        Index(
            "ix_jobs_ended",
            "model",
            "task",
            "finished_at",
            "id",
            sqlite_where=text(ENDED),
            postgresql_where=text(ENDED),
        ),
    )


class Payload(Base):
    """The texts that the user sent, the task's own fields, and metadata to search by."""

    __tablename__ = "payloads"

    job_id: Mapped[UUID] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    contract: Mapped[dict[str, Any]] = mapped_column(SealedJSON("payloads", "contract"))
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    # The chat job that this one continues. No foreign key: that job may be deleted first.
    previous_job_id: Mapped[UUID | None]
    pruned_at: Mapped[datetime | None]  # since when the contract is empty


class Result(Base):
    """The answer to a job."""

    __tablename__ = "results"

    job_id: Mapped[UUID] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    output: Mapped[str] = mapped_column(SealedText("results", "output"))
    # Further returned sequences, best first.
    alternatives: Mapped[list[str]] = mapped_column(SealedJSON("results", "alternatives"))
    finish_reason: Mapped[str] = mapped_column(String(16))
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    # The settings of this answer alone. The shared fields are in the model card; a worker of a
    # revision before 0004 writes both here.
    provenance: Mapped[dict[str, Any]] = mapped_column(SealedJSON("results", "provenance"))
    # No foreign key: its check would lock the row of one card for each result of all workers. Cards
    # are never deleted.
    model_card_id: Mapped[UUID | None]
    # How much of the source was read, and in how many parts.
    coverage: Mapped[dict[str, Any] | None] = mapped_column(SealedJSON("results", "coverage"))
    left_out_characters: Mapped[int | None]  # of the source; 0: all of it was read
    cached_parts: Mapped[int | None]  # requests that were answered from the cache
    # The signals of `db.outcome.Signals`. None: the signal does not apply to this result.
    length_ratio: Mapped[float | None]
    repetition: Mapped[float | None]
    detected_language: Mapped[str | None] = mapped_column(String(32))
    untranslated_share: Mapped[float | None]
    num_empty_parts: Mapped[int | None]
    num_cut_parts: Mapped[int | None]
    num_missed_placeholders: Mapped[int | None]
    num_missed_terms: Mapped[int | None]
    suspicions: Mapped[str | None]  # codes, separated by spaces; None: nothing is suspicious
    # The reasoning of the model before its answer.
    reasoning: Mapped[str | None] = mapped_column(SealedText("results", "reasoning"))
    reasoning_tokens: Mapped[int | None]  # of the completion's
    pruned_at: Mapped[datetime | None]  # since when there is no text here, only counts


class ModelCardRow(Base):
    """A model as it was loaded: checkpoint, revision, device, library versions."""

    __tablename__ = "model_cards"

    id: Mapped[UUID] = mapped_column(primary_key=True)  # hash of its content, see db/model_card.py
    content: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now())


class Segment(Base):
    """A finished part of a recipe, so that another attempt does not repeat it."""

    __tablename__ = "segments"

    job_id: Mapped[UUID] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    output: Mapped[dict[str, Any]] = mapped_column(
        SealedJSON("segments", "output", ("job_id", "position"))
    )
    created_at: Mapped[datetime] = mapped_column(default=now())


class CacheEntry(Base):
    """A model's answer to a request, reused for equal requests."""

    __tablename__ = "cache_entries"

    key: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)  # hash of the request
    tenant: Mapped[str | None] = mapped_column(String(128))  # None: shared by all tenants
    output: Mapped[bytes] = mapped_column(SealedBytes("cache_entries", "output", ("key",)))
    num_bytes: Mapped[int]  # size of the output, for the sum of all entries
    created_at: Mapped[datetime] = mapped_column(default=now())
    used_at: Mapped[datetime] = mapped_column(default=now())  # the last time, to the hour

    __table_args__ = (
        Index("ix_cache_entries_created_at", "created_at"),
        Index("ix_cache_entries_used_at_num_bytes", "used_at", "num_bytes"),
    )


class AttemptRow(Base):
    """An attempt that did not succeed, and why; the successful one is in the job itself."""

    __tablename__ = "attempts"

    job_id: Mapped[UUID] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    owner: Mapped[str | None] = mapped_column(String(128))
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime] = mapped_column(default=now())
    next_state: Mapped[str] = mapped_column(String(16))  # where the job went from there
    error_code: Mapped[str | None] = mapped_column(String(64))  # None: released unblamed
    error_message: Mapped[str | None] = mapped_column(Text)
    output: Mapped[str | None] = mapped_column(  # the answer that was refused
        SealedText("attempts", "output", ("job_id", "attempt"))
    )


class QuarantinedMessage(Base):
    """A message that could not be taken, unchanged; the oldest are deleted."""

    __tablename__ = "quarantined_messages"

    id: Mapped[UUID] = mapped_column(primary_key=True)  # in order of arrival
    arrived_at: Mapped[datetime]
    queue: Mapped[str]
    reason: Mapped[str] = mapped_column(String(64))
    task: Mapped[str | None]  # task and model: None if they could not be read
    origin: Mapped[str | None]
    # No foreign key: the job may be gone, and the message is kept all the same.
    job_id: Mapped[UUID | None] = mapped_column(index=True)
    num_bytes: Mapped[int] = mapped_column(BigInteger)  # of the message; the body may be less
    body: Mapped[bytes] = mapped_column(SealedBytes("quarantined_messages", "body", ("id",)))


class AuditEntry(Base):
    """An act: who did what to which objects, with a hash of it and of all acts before."""

    __tablename__ = "audit"

    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    actor: Mapped[str]
    act: Mapped[str] = mapped_column(String(32))
    objects: Mapped[dict[str, Any]]  # ids and numbers, never a user's text
    previous_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))

    __table_args__ = (Index("ix_audit_at", "at"),)


class AuditHead(Base):
    """The end of the chain: one row, locked by each append until its commit."""

    __tablename__ = "audit_heads"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger)
    previous_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class WorkerRow(Base):
    """A live worker: the models that it serves and its capacity."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    room: Mapped[dict[str, Any]]  # model -> jobs it wants at hand
    engines: Mapped[list[dict[str, Any]] | None]  # what each loaded, how it was sized, and why
    num_running: Mapped[int]
    started_at: Mapped[datetime]
    alive_until: Mapped[datetime]


class Leadership(Base):
    """A duty that one worker at a time holds, and until when."""

    __tablename__ = "leaderships"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    leader: Mapped[str] = mapped_column(String(128))
    until: Mapped[datetime]
