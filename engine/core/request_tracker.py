"""RequestTracker: the requests that this process has received and not yet answered."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Condition

from engine.errors import InvariantBroken


class RequestTracker:
    """The ids of unanswered requests, and which of them are cancelled. Thread-safe.

    Always: the cancelled ids are a subset of the held ids. The reader opens a request; the writer
    closes it before it sends the output. Each thread checks for cancellation before it works on a
    request, so a cancellation passes through no queue.
    """

    def __init__(self, max_held: int) -> None:
        self.max_held = max_held
        self._changed = Condition()
        self._held: set[int] = set()
        self._cancelled: set[int] = set()

    def open(self, ids: Iterable[int]) -> None:
        """Add requests that were received."""
        with self._changed:
            self._held.update(ids)

    def close(self, ids: Iterable[int]) -> None:
        """Remove requests whose output is about to be sent."""
        with self._changed:
            self._held.difference_update(ids)
            self._cancelled &= self._held
            self._changed.notify()

    def wait_for_capacity(self, timeout_seconds: float) -> bool:
        """Block until fewer than `max_held` requests are held; False after the timeout."""
        with self._changed:
            return self._changed.wait_for(
                lambda: len(self._held) < self.max_held, timeout=timeout_seconds
            )

    def cancel(self, ids: Iterable[int]) -> None:
        """Mark requests as cancelled. Other ids were answered before and are ignored."""
        with self._changed:
            self._cancelled.update(self._held.intersection(ids))

    def is_cancelled(self, id_: int) -> bool:
        return id_ in self._cancelled

    @property
    def cancelled(self) -> frozenset[int]:
        if not self._cancelled:  # nearly always, and read at every step
            return frozenset()
        with self._changed:
            return frozenset(self._cancelled)

    def check(self) -> None:
        """Raise InvariantBroken if an id is cancelled that is not held."""
        with self._changed:
            if not self._cancelled <= self._held:
                strays = sorted(self._cancelled - self._held)
                raise InvariantBroken(f"cancelled but not held: {strays}")
