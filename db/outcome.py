"""Outcome: how an attempt ended, and its answer."""

from dataclasses import dataclass, fields
from typing import Any
from uuid import UUID

from db.states import JobState
from db.suspicion import Suspicion


@dataclass(frozen=True, slots=True)
class Fence:
    """The right of an attempt to write: an older attempt of the job changes nothing."""

    job_id: UUID
    attempt: int
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """Cheap signs of an answer's quality; None: the signal does not apply."""

    length_ratio: float | None = None  # to the source; an ideograph counts as 3 letters
    repetition: float | None = None  # share of its most repetitive stretch, 0 to 1
    detected_language: str | None = None  # the language that the answer seems to be in
    untranslated_share: float | None = None  # of the letters of sentences of several words
    num_empty_parts: int | None = None
    num_cut_parts: int | None = None  # parts that ended at their limit of length
    num_missed_placeholders: int | None = None
    num_missed_terms: int | None = None  # terms of the glossary that the answer lacks
    suspicions: tuple[Suspicion, ...] = ()

    def to_row(self) -> dict[str, Any]:
        """The signals as columns of a result."""
        row = {name: getattr(self, name) for name in SIGNALS}
        return {**row, "suspicions": " ".join(self.suspicions) or None}


SIGNALS = tuple(each.name for each in fields(Signals) if each.name != "suspicions")
NO_SIGNALS = Signals()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A job's answer, with its token counts, settings and signals."""

    output: str
    alternatives: tuple[str, ...] = ()
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    provenance: dict[str, Any]  # the settings of this answer alone
    model_card: dict[str, Any] | None = None  # the fields that all answers of its model share
    coverage: dict[str, Any] | None = None  # of the source; None if it does not apply
    left_out_characters: int | None = None  # of the source
    cached_parts: int = 0  # requests that were answered for another job, before or at the same time
    signals: Signals = NO_SIGNALS
    reasoning: str | None = None  # the reasoning of the model before its answer
    reasoning_tokens: int | None = None  # of the completion's


@dataclass(frozen=True, slots=True)
class FinishedSegment:
    """A finished part of an attempt, stored for the next attempt if this one does not finish."""

    fence: Fence
    position: int  # index of its request among those of the job
    output: dict[str, Any]


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """A model's answer, stored for equal requests."""

    fence: Fence  # of an attempt that this entry answers
    key: bytes  # of all that decides the answer
    tenant: str | None  # the tenant that may read it; None: all tenants
    output: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of an attempt, and the next state of its job.

    A failure that can be retried goes to `queued` with a delay; a release goes there without delay
    and without blame.
    """

    fence: Fence
    state: JobState
    answer: Answer | None = None
    has_segments: bool = False  # stored segments, which the answer makes superfluous
    error_code: str | None = None
    error_message: str | None = None
    blamed: bool = False  # counts towards the limit of failures
    delay_seconds: float = 0.0
    output: str | None = None  # the refused answer, if that was the failure
    model: str | None = None  # the model whose queue the job goes to; None: the same as before

    def __post_init__(self) -> None:
        assert (self.answer is not None) == (self.state is JobState.SUCCEEDED)
        assert self.state is not JobState.RUNNING

    @classmethod
    def succeeded(cls, fence: Fence, answer: Answer, has_segments: bool = False) -> "Outcome":
        return cls(fence=fence, state=JobState.SUCCEEDED, answer=answer, has_segments=has_segments)

    @classmethod
    def failed(cls, fence: Fence, code: str, message: str, output: str | None = None) -> "Outcome":
        return cls(
            fence=fence,
            state=JobState.FAILED,
            error_code=code,
            error_message=message,
            blamed=True,
            output=output,
        )

    @classmethod
    def retried(cls, fence: Fence, code: str, message: str, delay_seconds: float) -> "Outcome":
        return cls(
            fence=fence,
            state=JobState.QUEUED,
            error_code=code,
            error_message=message,
            blamed=True,
            delay_seconds=delay_seconds,
        )

    @classmethod
    def moved(cls, fence: Fence, model: str) -> "Outcome":
        """The job continues at a worker that serves another model; its segments are kept."""
        return cls(fence=fence, state=JobState.QUEUED, model=model)

    @classmethod
    def released(cls, fence: Fence) -> "Outcome":
        return cls(fence=fence, state=JobState.QUEUED)
