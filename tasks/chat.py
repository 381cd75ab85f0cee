"""The chat task: the assistant's next message in a dialogue."""

from typing import Annotated, Any, ClassVar, Literal, Self

from celery import Task
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tasks.app import app
from tasks.contracts.contract import MAX_TEXT_CHARACTERS, JobId, Storable, clash, not_huge
from tasks.contracts.json_answer import JsonAnswerContract
from tasks.contracts.message_parts import text_of, with_languages
from tasks.contracts.template_switches import SwitchesContract
from tasks.submission.message import submit_request
from tasks.submission.submitted import SubmittedJob
from tasks.submit import submit_contract


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    # A turn of the assistant may be empty; one of the user may not.
    content: Annotated[str, Storable, BeforeValidator(not_huge), BeforeValidator(text_of)]


class ChatContract(JsonAnswerContract, SwitchesContract, frozen=True):
    task: ClassVar[str] = "chat"

    messages: tuple[ChatMessage, ...] = Field(min_length=1, max_length=1000)
    # A chat of the same tenant that has succeeded: its dialogue and answer come before these.
    previous_job_id: JobId | None = None

    @model_validator(mode="before")
    @classmethod
    def _languages_are_switches(cls, fields: Any) -> Any:
        return with_languages(fields)

    @model_validator(mode="after")
    def _ends_with_a_question(self) -> Self:
        last = self.messages[-1]
        if last.role != "user":
            raise clash(
                "messages", f"end with the role {last.role!r}; the last message must be the user's"
            )
        if not last.content.strip():
            raise clash("messages", "end with an empty one; give at least one word")
        if self.num_characters > MAX_TEXT_CHARACTERS:
            raise clash(
                "messages",
                f"have {self.num_characters} characters together; "
                f"at most {MAX_TEXT_CHARACTERS} are taken",
            )
        return self

    @property
    def num_characters(self) -> int:
        return sum(len(message.content) for message in self.messages)


def submit(**fields: Any) -> SubmittedJob:
    """Submit one job; the fields are those of ChatContract.

    Raises Refused if the job is not taken: a wrong field, an unknown model, an idempotency key of
    another job.
    """
    return submit_contract(ChatContract.parse(fields))


@app.task(name="tasks.chat", bind=True)
def chat(self: "Task[..., str]", /, *args: Any, **fields: Any) -> str:
    """Submit one job by message, for producers that have only Celery and Redis; returns its id."""
    return submit_request(ChatContract, args, fields, self.request)
