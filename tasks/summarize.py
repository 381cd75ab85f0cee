"""The summarize task: a shorter text that says the same."""

from typing import Any, ClassVar

from celery import Task

from tasks.app import app
from tasks.contract import Contract, Text
from tasks.submit import SubmittedJob, submit_contract, submit_request


class SummarizeContract(Contract):
    task: ClassVar[str] = "summarize"

    text: Text

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
