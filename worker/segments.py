"""Segments: the outputs of a job's requests as they are kept between its attempts.

A recipe is run again from its beginning and asks for the same in the same order, so the
place of a request is its key. The digest says whether it is the same: another model, or
another version of a recipe, computes anew.
"""

from collections.abc import Mapping
from typing import Any

from engine.protocol.messages import Output, Request
from worker.content_key import request_digest


def segment_of(
    request: Request, output: Output, model: bytes, *, is_cached: bool = False
) -> dict[str, Any]:
    """What to keep of an output; model: its digest."""
    segment: dict[str, Any] = {
        "digest": request_digest(request, model).hex(),
        "output": output.to_json(),
    }
    return {**segment, "cached": True} if is_cached else segment


def finished_output(
    segment: Mapping[str, Any] | None, request: Request, model: bytes
) -> Output | None:
    """The output that was kept for this very request, if there is one."""
    if segment is None or segment.get("digest") != request_digest(request, model).hex():
        return None
    return Output.from_json(segment["output"])


def is_cached(segment: Mapping[str, Any]) -> bool:
    """Whether it was computed for another job."""
    return bool(segment.get("cached"))
