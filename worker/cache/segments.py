"""Segments: the outputs of a job's requests as they are kept between its attempts.

A recipe is run again from its beginning and asks for the same in the same order, so the
place of a request is its key. The digest says whether it is the same: another model, or
another version of a recipe, computes anew.
"""

from collections.abc import Mapping
from typing import Any

from engine.protocol.messages import ModelCard, Output, Request
from worker.cache.content_key import request_digest


def segment_of(
    request: Request, output: Output, model: bytes, card: ModelCard, *, is_cached: bool = False
) -> dict[str, Any]:
    """An output as it is stored; model: its digest, card: its card."""
    segment: dict[str, Any] = {
        "digest": request_digest(request, model).hex(),
        "output": output.to_json(),
    }
    if is_cached:
        segment["cached"] = True
    if request.model is not None:
        # Of several models: who takes the job up next may not have this one.
        segment |= {"model": identity(card), "model_digest": model.hex()}
    return segment


def finished_output(
    segment: Mapping[str, Any] | None, request: Request, model: bytes | None
) -> Output | None:
    """The output that was kept for this very request, if there is one.

    model: the digest of the one that would answer it; None where it is another worker's
    """
    if segment is None:
        return None
    if model is None:
        model = bytes.fromhex(segment.get("model_digest", ""))
    if segment.get("digest") != request_digest(request, model).hex():
        return None
    return Output.from_json(segment["output"])


def is_cached(segment: Mapping[str, Any]) -> bool:
    """Whether it was computed for another job."""
    return bool(segment.get("cached"))


def identity(card: ModelCard) -> dict[str, Any]:
    """The part of a model's card that the result of a job with several models names."""
    return {name: getattr(card, name) for name in ("checkpoint", "revision", "engine", "dtype")}
