"""Segments: the outputs of a job's requests as they are kept between its attempts.

A recipe is run again from its beginning and asks for the same in the same order, so the
place of a request is its key. The digest says whether it is the same: another model, or
another version of a recipe, computes anew.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from engine.protocol.messages import ModelCard, Output, Request


def segment_of(request: Request, output: Output, card: ModelCard) -> dict[str, Any]:
    """What to keep of an output."""
    return {"digest": digest(request, card), "output": output.to_json()}


def finished_output(
    segment: Mapping[str, Any] | None, request: Request, card: ModelCard
) -> Output | None:
    """The output that was kept for this very request, if there is one."""
    if segment is None or segment.get("digest") != digest(request, card):
        return None
    return Output.from_json(segment["output"])


def digest(request: Request, card: ModelCard) -> str:
    """Of all that decides what the model answers."""
    asked = request.to_json()
    del asked["id"]
    asked.pop("is_interactive", None)
    model = [card.checkpoint, card.revision, card.engine, card.dtype]
    told = json.dumps([asked, model], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()
