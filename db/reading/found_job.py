"""FoundJob: a job as readers get it, and its place in a list."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from db.states import JobState
from db.suspicion import Suspicion


@dataclass(frozen=True, slots=True)
class JobFailure:
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundJob:
    """A job as readers get it.

    `output` is None before it succeeds and after it is pruned, `input` unless it was requested.
    """

    id: UUID
    batch: str | None
    custom_id: str | None
    task: str
    model: str
    state: JobState
    output: str | None
    alternatives: tuple[str, ...]  # further returned sequences, best first
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    error: JobFailure | None
    metadata: Mapping[str, str]
    language: str | None
    tenant: str
    attempt: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    input: str | None = None
    left_out_characters: int | None = None  # of its source; None if it does not apply
    cached_parts: int | None = None  # requests that were answered from the cache
    # Signals of the result's quality, as in `db.outcome.Signals`.
    length_ratio: float | None = None
    repetition: float | None = None
    detected_language: str | None = None
    untranslated_share: float | None = None
    num_empty_parts: int | None = None
    num_cut_parts: int | None = None
    num_missed_placeholders: int | None = None
    num_missed_terms: int | None = None
    suspicions: tuple[Suspicion, ...] = ()
    reasoning: str | None = None  # the reasoning of the model before its answer
    reasoning_tokens: int | None = None  # of the completion's
    # When its texts were deleted, by retention or by erasure; its counts stay.
    input_pruned_at: datetime | None = None
    output_pruned_at: datetime | None = None
    erased_at: datetime | None = None

    @property
    def wait_seconds(self) -> float | None:
        """Seconds from submission to the start of the last attempt; None while queued."""
        if self.started_at is None or self.state is JobState.QUEUED:
            return None
        return (self.started_at - self.created_at).total_seconds()

    @property
    def run_seconds(self) -> float | None:
        """Seconds of the last attempt; None for a job that is unfinished or never ran."""
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()

    @property
    def pruned_at(self) -> datetime | None:
        """The instant at which the last of its texts was pruned; None if it has all of them."""
        return max(filter(None, (self.input_pruned_at, self.output_pruned_at)), default=None)

    @property
    def cursor(self) -> "Cursor":
        """The job's place in a list; pass it as `after` to get the jobs that follow."""
        return Cursor(self.created_at, self.id)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a list that does not move when rows are added: a key, not an offset."""

    created_at: datetime
    job_id: UUID

    def __str__(self) -> str:
        return f"{self.created_at.isoformat()}_{self.job_id}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        instant, _, job_id = text.rpartition("_")
        return cls(datetime.fromisoformat(instant), UUID(job_id))
