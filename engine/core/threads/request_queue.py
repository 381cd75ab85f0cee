"""RequestQueue: the requests that wait to be tokenized, interactive ones first."""

from __future__ import annotations

from collections import deque
from threading import Condition

from engine.protocol.request import Request


class RequestQueue:
    """Holds requests between reader and tokenizer thread. The tracker bounds its length.

    Bulk requests wait as long as there are interactive ones, as in the scheduler. Within a lane
    they are served in order of arrival.
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
        """Take the next request, interactive ones first. Blocks until there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._interactive or self._bulk)
            return (self._interactive or self._bulk).popleft()

    def get_interactive(self) -> Request | None:
        """Take the next interactive request; None if none is queued. Does not wait."""
        with self._changed:
            return self._interactive.popleft() if self._interactive else None
