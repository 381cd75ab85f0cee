"""The chat task: the assistant's next message in a dialogue."""

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from celery import Task
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from tasks.app import app
from tasks.contracts.contract import MAX_TEXT_CHARACTERS, JobId, Storable, clash, not_huge
from tasks.contracts.json_answer import JsonAnswerContract
from tasks.submission.message import submit_request
from tasks.submission.submitted import SubmittedJob
from tasks.submit import submit_contract

MAX_TEMPLATE_KWARGS = 32
MAX_TEMPLATE_KWARGS_CHARACTERS = 8192  # as JSON
# What the worker gives to a chat template, or what would change what comes back of it.
RESERVED_KWARGS = frozenset(
    {
        "add_generation_prompt", "add_special_tokens", "bos_token", "chat_template",
        "continue_final_message", "conversation", "eos_token", "max_length", "messages",
        "pad_token", "padding", "raise_exception", "return_assistant_tokens_mask", "return_dict",
        "return_tensors", "self", "strftime_now", "tokenize", "tokenizer_kwargs",
        "tools", "documents", "truncation", "unk_token",
    }
)  # fmt: skip
MAX_KWARG_NAME = 64


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    # An assistant's turn may have been empty; what is asked may not.
    content: Annotated[str, Storable, BeforeValidator(not_huge)]


class ChatContract(JsonAnswerContract, frozen=True):
    task: ClassVar[str] = "chat"

    messages: tuple[ChatMessage, ...] = Field(min_length=1, max_length=1000)
    # A chat of the same tenant that has succeeded: its dialogue and answer come before these.
    previous_job_id: JobId | None = None
    # Switches of the model's chat template, such as {"enable_thinking": False}.
    chat_template_kwargs: dict[str, JsonValue] | None = Field(
        default=None, max_length=MAX_TEMPLATE_KWARGS
    )

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

    @model_validator(mode="after")
    def _switches_a_template_only(self) -> Self:
        switches = self.chat_template_kwargs or {}
        field = "chat_template_kwargs"
        for name in switches:
            if not (name.isascii() and name.isidentifier() and len(name) <= MAX_KWARG_NAME):
                raise clash(
                    field,
                    f"has a name that is none: letters, digits and _, at most {MAX_KWARG_NAME}",
                )
            if name in RESERVED_KWARGS:
                raise clash(field, f"may not hold {name}, which the worker sets; leave it out")
        try:
            text = json.dumps(switches, allow_nan=False, ensure_ascii=False)
            text.encode()
        except RecursionError:
            raise clash(field, "is nested too deeply; make it flat") from None
        except ValueError:
            raise clash(field, "holds NaN, infinity or half a character; leave it out") from None
        if "\\u0000" in text:
            raise clash(field, "holds a NUL byte; remove it")
        if len(text) > MAX_TEMPLATE_KWARGS_CHARACTERS:
            raise clash(
                field,
                f"has {len(text)} characters as JSON; "
                f"at most {MAX_TEMPLATE_KWARGS_CHARACTERS} are taken",
            )
        return self

    @property
    def num_characters(self) -> int:
        return sum(len(message.content) for message in self.messages)


def submit(**fields: Any) -> SubmittedJob:
    """Submit one job; the fields are those of ChatContract.

    Raises Refused when the job is not taken: a wrong field, an unknown model,
    an idempotency key of another job.
    """
    return submit_contract(ChatContract.parse(fields))


@app.task(name="tasks.chat", bind=True)
def chat(self: "Task[..., str]", /, *args: Any, **fields: Any) -> str:
    """The same for producers that have only Celery and Redis; returns the job's id."""
    return submit_request(ChatContract, args, fields, self.request)
