"""Outage: logs the beginning and the end of a repeated failure."""

import logging
import threading
import time


class Outage:
    """Reports failures that repeat: one log line for the first, one when a try succeeds again.

    Any thread may report a try. The error is named by its type alone: its message may be a user's
    text.
    """

    def __init__(self, log: logging.Logger, down: str, up: str) -> None:
        self._log = log
        self._down = down
        self._up = up
        self._lock = threading.Lock()
        self._since: float | None = None
        self._num_failures = 0

    def began(self, error: Exception, **fields: object) -> None:
        with self._lock:
            self._num_failures += 1
            if self._since is not None:
                return
            self._since = time.monotonic()
        self._log.warning(self._down, extra={**fields, "error": type(error).__name__})

    def ended(self, **fields: object) -> None:
        if self._since is None:
            return
        with self._lock:
            if self._since is None:
                return
            seconds, num_failures = time.monotonic() - self._since, self._num_failures
            self._since, self._num_failures = None, 0
        self._log.warning(
            self._up,
            extra={**fields, "seconds": round(seconds, 1), "num_failures": num_failures},
        )
