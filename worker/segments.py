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
    segment = {"digest": digest(request, identity(card)), "output": output.to_json()}
    # Of several models: who takes the job up next may not have this one.
    return segment if request.model is None else {**segment, "model": identity(card)}


def finished_output(
    segment: Mapping[str, Any] | None, request: Request, card: ModelCard | None
) -> Output | None:
    """The output that was kept for this very request, if there is one.

    card: of the model that would answer it; None where it is another worker's
    """
    if segment is None:
        return None
    model = segment.get("model") if card is None else identity(card)
    if model is None or segment.get("digest") != digest(request, model):
        return None
    return Output.from_json(segment["output"])


def identity(card: ModelCard) -> dict[str, Any]:
    """What of a model decides what it answers."""
    return {name: getattr(card, name) for name in ("checkpoint", "revision", "engine", "dtype")}


def digest(request: Request, model: Mapping[str, Any]) -> str:
    """Of all that decides what the model answers."""
    fields = request.to_json()
    del fields["id"]
    fields.pop("is_interactive", None)
    written = json.dumps([fields, dict(model)], sort_keys=True)
    return hashlib.sha256(written.encode()).hexdigest()
