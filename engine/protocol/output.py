"""Output: the outcome of a request, as the engine sends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from engine.errors import RequestError

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer as text.

    token_ids: the new tokens, with the end token. They are not sent to the parent, which does not
               read them: they would be half of a long answer's frame.
    """

    text: str
    finish_reason: FinishReason
    completion_tokens: int
    token_ids: tuple[int, ...] = ()
    reasoning: str | None = None  # the text that a reasoning model writes before its answer
    reasoning_tokens: int = 0  # of the completion's

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Self:
        text, finish_reason, completion_tokens, *thought = data
        choice = cls(text, finish_reason, completion_tokens)
        if not thought:
            return choice
        reasoning, reasoning_tokens = thought
        return replace(choice, reasoning=reasoning, reasoning_tokens=reasoning_tokens)

    def to_json(self) -> list[Any]:
        thought = [] if self.reasoning is None else [self.reasoning, self.reasoning_tokens]
        return [self.text, self.finish_reason, self.completion_tokens, *thought]


@dataclass(frozen=True, slots=True)
class RequestFailure:
    """The reason that a request has no answer. errors.py lists the values of `code`."""

    code: str
    message: str
    retryable: bool

    @classmethod
    def of(cls, error: RequestError) -> Self:
        return cls(error.code, str(error), error.retryable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The lengths of prompts in the model's tokens, and the longest length that it takes."""

    num_tokens: tuple[int, ...]  # of each prompt; 0: the tokenizer keeps nothing of its text
    max_prompt_tokens: int  # at most so many leave room for the answer
    max_new_tokens: int  # of the answer, as the request and the model have it

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{**data, "num_tokens": tuple(data["num_tokens"])})

    def to_json(self) -> dict[str, Any]:
        return {
            "num_tokens": list(self.num_tokens),
            "max_prompt_tokens": self.max_prompt_tokens,
            "max_new_tokens": self.max_new_tokens,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """The result of one request: choices, a measurement or a failure."""

    request_id: int
    choices: tuple[Choice, ...] = ()
    prompt_tokens: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)  # as used, seed included
    failure: RequestFailure | None = None
    measurement: Measurement | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        failure, measurement = data.get("failure"), data.get("measurement")
        return cls(
            request_id=data["request_id"],
            choices=tuple(map(Choice.from_json, data["choices"])),
            prompt_tokens=data["prompt_tokens"],
            settings=data["settings"],
            failure=None if failure is None else RequestFailure(*failure),
            measurement=None if measurement is None else Measurement.from_json(measurement),
        )

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "request_id": self.request_id,
            "choices": [each.to_json() for each in self.choices],
            "prompt_tokens": self.prompt_tokens,
            "settings": dict(self.settings),
        }
        if (failure := self.failure) is not None:
            data["failure"] = [failure.code, failure.message, failure.retryable]
        if self.measurement is not None:
            data["measurement"] = self.measurement.to_json()
        return data
