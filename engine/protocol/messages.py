"""Messages: the frames between the parent and the engine process.

parent -> engine: Load once, then Run, Cancel, Stop
engine -> parent: Ready or LoadFailed once, then Outputs

A frame is one `send_bytes` of JSON. Every request of a Run gets exactly one Output: choices, a
measurement (if the request asks for one) or a failure. Nothing here loads a model library. Both
sides run the same version of the code, so a frame that does not parse is our own mistake.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, Self

from annotated_types import Interval

from engine.errors import RequestError
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import Sized
from engine.protocol.task_names import TaskName as Task

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One message of a chat, with its role."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)  # without slots: contracts inherit the fields
class Params:
    """Decoding parameters, named as in `transformers`. None: the model's own value.

    This is the only list of them. `tasks.contracts.contract` inherits the fields and checks the
    ranges, and `engine.sampling.resolve_params` fills in the model's values.
    """

    max_new_tokens: Annotated[int, Interval(ge=1, le=100_000)] | None = None
    min_new_tokens: Annotated[int, Interval(ge=0, le=100_000)] | None = None
    # Decoder-only: the prompt included; encoder-decoder: tokens of the decoder.
    max_length: Annotated[int, Interval(ge=1, le=1_000_000)] | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Interval(ge=0, le=100)] | None = None
    top_k: Annotated[int, Interval(ge=1, le=1_000_000)] | None = None
    top_p: Annotated[float, Interval(gt=0, le=1)] | None = None
    num_beams: Annotated[int, Interval(ge=1, le=64)] | None = None
    length_penalty: Annotated[float, Interval(ge=-100, le=100)] | None = None
    early_stopping: bool | None = None
    repetition_penalty: Annotated[float, Interval(gt=0, le=100)] | None = None
    no_repeat_ngram_size: Annotated[int, Interval(ge=0, le=1000)] | None = None
    num_return_sequences: Annotated[int, Interval(ge=1, le=64)] | None = None
    seed: Annotated[int, Interval(ge=0, lt=2**63)] | None = None
    stop: tuple[str, ...] = field(default_factory=tuple)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        stop = tuple(data.get("stop", ()))
        return cls(**{**data, "stop": stop})

    def to_json(self) -> dict[str, Any]:
        """The parameters that are not None."""
        data = {
            name: value
            for name in PARAMS
            if name != "stop" and (value := getattr(self, name)) is not None
        }
        if self.stop:
            data["stop"] = list(self.stop)
        return data


PARAMS = tuple(each.name for each in fields(Params))


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
    params: Params = field(default_factory=Params)
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
            params=Params.from_json(data["params"]),
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
    reasoning: str | None = None  # what a model thought before it answered
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The lengths of the engine's queues, and totals since the start."""

    num_waiting: int = 0  # requests
    num_running: int = 0  # requests
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_found_tokens: int = 0  # of these, from the prefix cache
    num_completion_tokens: int = 0
    # Requests begun, by how they run: in flight, or by `model.generate`.
    num_in_flight: int = 0
    num_by_generate: int = 0
    busy_seconds: float = 0.0  # in steps; the engine was idle for the rest
    num_rows: int = 0  # of the last step, and so the next; 0 when nothing runs
    num_cache_tokens: int = 0  # places of the KV cache
    num_row_steps: int = 0  # the rows of every step, added up
    step_counts: tuple[int, ...] = ()  # steps by their time: up to each of STEP_SECONDS, and longer

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{**data, "step_counts": tuple(data["step_counts"])})

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in PROGRESS}


PROGRESS = tuple(each.name for each in fields(Progress))
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """The provenance of a result: the model as it was loaded."""

    alias: str
    checkpoint: str
    revision: str | None  # a commit, or a short hash over configuration and weights
    family: Literal["seq2seq", "causal", "fake"]
    engine: str  # inflight, exact, ctranslate2, vllm or fake
    model_type: str
    device: str
    dtype: str
    max_context_tokens: int | None  # None: the checkpoint names no limit
    num_parameters: int
    weight_files: Mapping[str, str] = field(default_factory=dict)  # name -> SHA-256
    weights: str | None = None  # how they were changed at load; None: not at all
    licence: str | None = None  # None: the checkpoint names none
    engine_reason: str | None = None  # why this engine, and its limits; None: as configured
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        data = {each.name: getattr(self, each.name) for each in fields(self)}
        data["weight_files"] = dict(self.weight_files)
        data["versions"] = dict(self.versions)
        return data


@dataclass(frozen=True, slots=True)
class Load:
    """The first frame: load this model."""

    spec: EngineSpec


@dataclass(frozen=True, slots=True)
class Run:
    """Answer these requests."""

    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel the requests with these ids; ids that were answered before are ignored."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """End after the present step. Unfinished requests get no output."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded; requests may be sent."""

    card: ModelCard
    sized: Sized


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be loaded, and the engine ends with status 1.

    message: one sentence with the remedy
    """

    message: str


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs since the last frame of this type; at most one frame a step."""

    outputs: tuple[Output, ...]
    progress: Progress


Frame = Load | Run | Cancel | Stop | Ready | LoadFailed | Outputs


def to_bytes(frame: Frame) -> bytes:
    """Serialize a frame as ASCII JSON."""
    data: dict[str, Any]
    match frame:
        case Run(requests):
            data = {"type": "run", "requests": [each.to_json() for each in requests]}
        case Outputs(outputs, progress):
            data = {
                "type": "outputs",
                "outputs": [each.to_json() for each in outputs],
                "progress": progress.to_json(),
            }
        case Cancel(ids):
            data = {"type": "cancel", "ids": list(ids)}
        case Load(spec):
            data = {"type": "load", "spec": spec.to_json()}
        case Ready(card, sized):
            data = {"type": "ready", "card": card.to_json(), "sized": sized.to_json()}
        case LoadFailed(message):
            data = {"type": "unloadable", "message": message}
        case Stop():
            data = {"type": "stop"}
    # Escaped to ASCII, so that a lone surrogate in a user's text can cross and be
    # answered instead of breaking the pipe for all requests of the frame.
    return json.dumps(data).encode("ascii")


def from_bytes(data: bytes) -> Frame:
    """Parse a frame that `to_bytes` made."""
    value = json.loads(data)
    match value["type"]:
        case "run":
            return Run(tuple(Request.from_json(each) for each in value["requests"]))
        case "outputs":
            outputs = tuple(Output.from_json(each) for each in value["outputs"])
            return Outputs(outputs, Progress.from_json(value["progress"]))
        case "cancel":
            return Cancel(tuple(value["ids"]))
        case "load":
            return Load(EngineSpec.from_json(value["spec"]))
        case "ready":
            return Ready(ModelCard.from_json(value["card"]), Sized.from_json(value["sized"]))
        case "unloadable":
            return LoadFailed(value["message"])
        case "stop":
            return Stop()
        case unknown:
            raise ValueError(f"a frame of the unknown type {unknown!r}")
