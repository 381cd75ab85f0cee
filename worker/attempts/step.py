"""Step: the requests that a recipe makes together, and their outputs."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

from engine.protocol.output import Output
from engine.protocol.request import Request
from worker.cache.content_key import ContentKey
from worker.recipes import Fallible


@dataclass(slots=True)
class PendingRequest:
    """A request, and the place of its output."""

    request: Request
    index: int  # within its step
    position: int  # within the attempt
    part: int | None  # the number among generating requests, from 1; None: it only counts tokens
    key: ContentKey | None  # in the content cache
    stored: Output | None = None  # an output that need not be computed
    is_cached: bool = False  # the output was computed for another job
    is_segment: bool = False  # the output is a segment of an earlier attempt


@dataclass(slots=True)
class Step:
    """One step of a recipe.

    It makes its requests page by page, so that they are never all in memory.
    """

    unmade: Iterator[Request]
    is_fallible: bool  # the recipe takes failed outputs too
    num_parts_before: int  # generating requests before this step
    is_made: bool = False  # all requests are made
    is_looking_up: bool = False  # a page is being looked up
    num_requests: int = 0  # made so far
    ready: deque[PendingRequest] = field(default_factory=deque)  # looked up, to be sent next
    outputs: dict[int, Output] = field(default_factory=dict)  # by the request's index
    missing_model: str | None = None  # a model that it needs and this worker does not serve

    @classmethod
    def of(cls, requests: Iterable[Request], num_parts_before: int) -> Self:
        return cls(iter(requests), isinstance(requests, Fallible), num_parts_before)

    def next_request(self) -> Request | None:
        """Make the next request; None if there are no more."""
        request = next(self.unmade, None)
        self.is_made = request is None
        self.num_requests += request is not None
        return request

    def outputs_in_order(self) -> tuple[Output, ...]:
        return tuple(self.outputs[index] for index in range(self.num_requests))
