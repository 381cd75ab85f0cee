"""Segments: the outputs of a job's requests, stored between its attempts.

A recipe is run again from its beginning and makes the same requests in the same order, so a
request's position is its key. The stored digest is compared, so that another model or another
version of the recipe computes the request again.
"""

from collections.abc import Mapping
from typing import Any

from engine.protocol.model_card import ModelCard
from engine.protocol.output import Output
from engine.protocol.request import Request
from worker.cache.content_key import request_digest

# The position of a masked job's placeholders, after that of any request.
PLACEHOLDERS = 2_000_000_000


def segment_of(
    request: Request, output: Output, model: bytes, card: ModelCard, *, is_cached: bool = False
) -> dict[str, Any]:
    """An output in its stored form.

    model: the model's digest
    card:  the model's card
    """
    segment: dict[str, Any] = {
        "digest": request_digest(request, model).hex(),
        "output": output.to_json(),
    }
    if is_cached:
        segment["cached"] = True
    if request.model is not None:
        # With several models the next worker may not serve this one.
        segment |= {"model": identity(card), "model_digest": model.hex()}
    return segment


def finished_output(
    segment: Mapping[str, Any] | None, request: Request, model: bytes | None
) -> Output | None:
    """The stored output of this request; None if there is none or it is of another request.

    model: the digest of the request's model; None if another worker serves it
    """
    if segment is None:
        return None
    if model is None:
        model = bytes.fromhex(segment.get("model_digest", ""))
    if segment.get("digest") != request_digest(request, model).hex():
        return None
    return Output.from_json(segment["output"])


def is_cached(segment: Mapping[str, Any]) -> bool:
    """Whether the segment was computed for another job."""
    return bool(segment.get("cached"))


def identity(card: ModelCard) -> dict[str, Any]:
    """The part of a model card that is kept in the result of a job with several models."""
    return {name: getattr(card, name) for name in ("checkpoint", "revision", "engine", "dtype")}
