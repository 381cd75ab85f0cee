"""The summarize task: a shorter text that says the same."""

from typing import Annotated, Any, ClassVar, Literal, Self

from celery import Task
from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from tasks.app import app
from tasks.contracts.contract import Contract, Language, Number, Storable, Text, clash, not_blank
from tasks.submission.message import submit_request
from tasks.submission.submitted import SubmittedJob
from tasks.submit import submit_contract

Option = Annotated[
    str, StringConstraints(min_length=1, max_length=500), BeforeValidator(not_blank), Storable
]


class SummarizeContract(Contract, frozen=True):
    task: ClassVar[str] = "summarize"

    text: Text
    # What to do with a text beyond the model's context; see docs/documents.md.
    strategy: Literal["auto", "map_reduce", "refine", "truncate", "fail"] | None = None
    max_words: Annotated[int, Field(ge=1, le=100_000), Number] | None = None
    min_words: Annotated[int, Field(ge=1, le=100_000), Number] | None = None
    # For models that take instructions.
    style: Option | None = None  # as in "bullet points"
    focus: Option | None = None  # as in "what it costs"
    output_language: Language | None = None
    ratio: Annotated[float, Field(gt=0, le=1), Number] | None = None  # of the source's words

    @model_validator(mode="after")
    def _words_fit_together(self) -> Self:
        if self.min_words is not None and self.min_words > (self.max_words or 10**9):
            raise clash("min_words", "is above max_words; lower it")
        return self

    @property
    def language_of_output(self) -> str | None:
        return self.output_language

    @property
    def num_characters(self) -> int:
        return len(self.text)


def submit(**fields: Any) -> SubmittedJob:
    """Submit one job; the fields are those of SummarizeContract.

    Raises Refused when the job is not taken: a wrong field, an unknown model,
    an idempotency key of another job.
    """
    return submit_contract(SummarizeContract.parse(fields))


@app.task(name="tasks.summarize", bind=True)
def summarize(self: "Task[..., str]", /, *args: Any, **fields: Any) -> str:
    """The same for producers that have only Celery and Redis; returns the job's id."""
    return submit_request(SummarizeContract, args, fields, self.request)
