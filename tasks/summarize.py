"""The summarize task: a shorter text with the same content."""

from typing import Annotated, Any, ClassVar, Literal, Self

from celery import Task
from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from tasks.app import app
from tasks.contracts.contract import (
    Language,
    Number,
    Storable,
    Text,
    TruthValue,
    clash,
    not_blank,
)
from tasks.contracts.template_switches import SwitchesContract
from tasks.submission.message import submit_request
from tasks.submission.submitted import SubmittedJob
from tasks.submit import submit_contract

Option = Annotated[
    str, StringConstraints(min_length=1, max_length=500), BeforeValidator(not_blank), Storable
]


class SummarizeContract(SwitchesContract, frozen=True):
    task: ClassVar[str] = "summarize"

    text: Text
    # How a text longer than the model's context is handled; see docs/documents.md.
    strategy: Literal["auto", "map_reduce", "refine", "truncate", "fail"] | None = None
    by_section: TruthValue | None = None  # of a Markdown text, each section is a part of its own
    # What the prompt of each part of a long text says about the text before the part.
    heading_path: TruthValue | None = None  # the headings above it
    overlap_sentences: Annotated[int, Field(ge=0, le=20), Number] | None = None
    max_words: Annotated[int, Field(ge=1, le=100_000), Number] | None = None
    min_words: Annotated[int, Field(ge=1, le=100_000), Number] | None = None
    # Only for models that follow instructions.
    style: Option | None = None  # as in "bullet points"
    focus: Option | None = None  # as in "what it costs"
    output_language: Language | None = None
    ratio: Annotated[float, Field(gt=0, le=1), Number] | None = None  # of the source's words

    @model_validator(mode="after")
    def _words_fit_together(self) -> Self:
        if self.min_words is not None and self.min_words > (self.max_words or 10**9):
            raise clash("min_words", "is above max_words; lower it")
        return self

    @model_validator(mode="after")
    def _has_parts_for_sections(self) -> Self:
        if self.by_section and self.strategy in ("truncate", "fail"):
            raise clash(
                "by_section",
                f"makes a part of each section, and strategy {self.strategy} makes none; "
                "leave one out",
            )
        return self

    @property
    def language_of_output(self) -> str | None:
        return self.output_language

    @property
    def num_characters(self) -> int:
        return len(self.text)


def submit(**fields: Any) -> SubmittedJob:
    """Submit one job; the fields are those of SummarizeContract.

    Raises Refused if the job is not taken: a wrong field, an unknown model, an idempotency key of
    another job.
    """
    return submit_contract(SummarizeContract.parse(fields))


@app.task(name="tasks.summarize", bind=True)
def summarize(self: "Task[..., str]", /, *args: Any, **fields: Any) -> str:
    """Submit one job by message, for producers that have only Celery and Redis; returns its id."""
    return submit_request(SummarizeContract, args, fields, self.request)
