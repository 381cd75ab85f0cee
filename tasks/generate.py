"""The generate task: a text that continues the prompt."""

from typing import Any, ClassVar

from celery import Task

from tasks.app import app
from tasks.contracts.contract import Text
from tasks.contracts.json_answer import JsonAnswerContract
from tasks.submission.message import submit_request
from tasks.submission.submitted import SubmittedJob
from tasks.submit import submit_contract


class GenerateContract(JsonAnswerContract, frozen=True):
    task: ClassVar[str] = "generate"

    text: Text

    @property
    def num_characters(self) -> int:
        return len(self.text)


def submit(**fields: Any) -> SubmittedJob:
    """Submit one job; the fields are those of GenerateContract.

    Raises Refused if the job is not taken: a wrong field, an unknown model, an idempotency key of
    another job.
    """
    return submit_contract(GenerateContract.parse(fields))


@app.task(name="tasks.generate", bind=True)
def generate(self: "Task[..., str]", /, *args: Any, **fields: Any) -> str:
    """Submit one job by message, for producers that have only Celery and Redis; returns its id."""
    return submit_request(GenerateContract, args, fields, self.request)
