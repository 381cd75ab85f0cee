"""RequestQueue: requests that wait to be tokenized, interactive ones first."""

from __future__ import annotations

from collections import deque
from threading import Condition

from engine.protocol.messages import Request


class RequestQueue:
    """Filled by the reader, emptied by the tokenizer thread. The tracker bounds its length.

    A bulk request waits while interactive ones do, as in the scheduler; within a lane the
    order is that of arrival.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._interactive: deque[Request] = deque()
        self._bulk: deque[Request] = deque()

    def put(self, request: Request) -> None:
        with self._changed:
            (self._interactive if request.is_interactive else self._bulk).append(request)
            self._changed.notify()

    def get(self) -> Request:
        """The next request, interactive ones first. Blocks until there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._interactive or self._bulk)
            return (self._interactive or self._bulk).popleft()

    def get_interactive(self) -> Request | None:
        """The next interactive request; None if none is queued. Does not wait."""
        with self._changed:
            return self._interactive.popleft() if self._interactive else None
