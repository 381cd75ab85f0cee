"""Messages: the frames between the parent and the engine process.

parent -> engine: Load once, then Run, Cancel, Stop
engine -> parent: Ready or LoadFailed once, then Outputs

A frame is one `send_bytes` of JSON. Every request of a Run gets exactly one Output: choices, a
measurement (if the request asks for one) or a failure. Nothing here loads a model library. Both
sides run the same version of the code, so a frame that does not parse is our own mistake.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import Sized
from engine.protocol.model_card import ModelCard
from engine.protocol.output import Output
from engine.protocol.progress import Progress
from engine.protocol.request import Request


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
