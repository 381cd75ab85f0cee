"""The translate task: the same text in another language."""

from typing import Any, ClassVar, Literal

from celery import Task

from tasks.app import app
from tasks.contracts.contract import Language, Text
from tasks.contracts.glossary import Glossary
from tasks.contracts.template_switches import SwitchesContract
from tasks.submission.message import submit_request
from tasks.submission.submitted import SubmittedJob
from tasks.submit import submit_contract


class TranslateContract(SwitchesContract, frozen=True):
    task: ClassVar[str] = "translate"

    text: Text
    source_language: Language  # "auto": the worker detects it
    target_language: Language
    # None: subtitles are recognized by their first lines.
    format: Literal["text", "subtitles"] | None = None
    # Term -> its translation, or null if the term must not be translated; see docs/documents.md.
    glossary: Glossary = None

    @property
    def num_characters(self) -> int:
        return len(self.text)

    @property
    def language_of_output(self) -> str:
        return self.target_language


def submit(**fields: Any) -> SubmittedJob:
    """Submit one job; the fields are those of TranslateContract.

    Raises Refused if the job is not taken: a wrong field, an unknown model or language, an
    idempotency key of another job.
    """
    return submit_contract(TranslateContract.parse(fields))


@app.task(name="tasks.translate", bind=True)
def translate(self: "Task[..., str]", /, *args: Any, **fields: Any) -> str:
    """Submit one job by message, for producers that have only Celery and Redis; returns its id."""
    return submit_request(TranslateContract, args, fields, self.request)
