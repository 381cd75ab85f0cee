"""Request: one prompt for the model, as the parent sends it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from engine.protocol.sampling_params import SamplingParams
from engine.protocol.task_names import TaskName as Task


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One message of a chat, with its role."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt for the model. The parent chooses a unique `id`."""

    id: int
    task: Task
    text: str | None = None  # None for chat
    # Texts whose prompts are to be counted; then nothing is generated, and `text` is None.
    measured_texts: tuple[str, ...] = ()
    measured_messages: tuple[tuple[ChatTurn, ...], ...] = ()  # the same for chat
    messages: tuple[ChatTurn, ...] = ()  # chat only
    source_language: str | None = None
    target_language: str | None = None
    params: SamplingParams = field(default_factory=SamplingParams)
    # Where a chat template writes the prompt.
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    json_schema: Mapping[str, Any] | None = None  # by which the engine masks tokens, if it can
    options: Mapping[str, str] = field(default_factory=dict)  # of prompt_texts.OPTIONS
    is_interactive: bool = False  # it is tokenized and admitted before bulk requests
    # For the parent: the alias of the model, if the job uses several.
    model: str | None = None

    @property
    def is_measured(self) -> bool:
        """Whether the request asks to count tokens instead of generating."""
        return bool(self.measured_texts or self.measured_messages)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            id=data["id"],
            task=data["task"],
            text=data.get("text"),
            measured_texts=tuple(data.get("measured_texts", ())),
            measured_messages=tuple(map(_read_messages, data.get("measured_messages", ()))),
            messages=_read_messages(data.get("messages", ())),
            source_language=data.get("source_language"),
            target_language=data.get("target_language"),
            params=SamplingParams.from_json(data["params"]),
            chat_template_kwargs=data.get("chat_template_kwargs", {}),
            json_schema=data.get("json_schema"),
            options=data.get("options", {}),
            is_interactive=data.get("is_interactive", False),
            model=data.get("model"),
        )

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "id": self.id,
            "task": self.task,
            "text": self.text,
            "params": self.params.to_json(),
        }
        if self.measured_texts:
            data["measured_texts"] = list(self.measured_texts)
        if self.measured_messages:
            data["measured_messages"] = [_write_messages(each) for each in self.measured_messages]
        if self.messages:
            data["messages"] = _write_messages(self.messages)
        if self.source_language is not None:
            data["source_language"] = self.source_language
        if self.target_language is not None:
            data["target_language"] = self.target_language
        if self.chat_template_kwargs:
            data["chat_template_kwargs"] = dict(self.chat_template_kwargs)
        if self.json_schema is not None:
            data["json_schema"] = dict(self.json_schema)
        if self.options:
            data["options"] = dict(self.options)
        if self.is_interactive:
            data["is_interactive"] = True
        if self.model is not None:
            data["model"] = self.model
        return data


def _read_messages(data: Iterable[tuple[str, str]]) -> tuple[ChatTurn, ...]:
    return tuple(ChatTurn(*each) for each in data)


def _write_messages(messages: Iterable[ChatTurn]) -> list[list[str]]:
    return [[each.role, each.content] for each in messages]
