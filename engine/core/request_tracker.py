"""RequestTracker: the requests to which this process owes an output."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Condition

from engine.errors import InvariantBroken


class RequestTracker:
    """Which requests came in and were not answered, and which of those were cancelled.

    Always: cancelled is within held. A request is opened by the reader, closed when its
    output is on its way, and its cancellation is seen by whoever holds it at the time.
    That is why a cancellation needs no place in any queue and can overtake a long one.
    """

    def __init__(self, max_held: int) -> None:
        self.max_held = max_held
        self._changed = Condition()
        self._held: set[int] = set()
        self._cancelled: set[int] = set()

    def open(self, ids: Iterable[int]) -> None:
        with self._changed:
            self._held.update(ids)

    def close(self, ids: Iterable[int]) -> None:
        with self._changed:
            self._held.difference_update(ids)
            self._cancelled &= self._held
            self._changed.notify()

    def wait_for_room(self, timeout_seconds: float) -> bool:
        """Whether another request may be taken in, after at most this long."""
        with self._changed:
            return self._changed.wait_for(
                lambda: len(self._held) < self.max_held, timeout=timeout_seconds
            )

    def cancel(self, ids: Iterable[int]) -> None:
        """Those already answered are passed over: their output was sent before this came."""
        with self._changed:
            self._cancelled.update(self._held.intersection(ids))

    def is_cancelled(self, id_: int) -> bool:
        return id_ in self._cancelled

    @property
    def cancelled(self) -> frozenset[int]:
        if not self._cancelled:  # nearly always, and asked at every step
            return frozenset()
        with self._changed:
            return frozenset(self._cancelled)

    def check(self) -> None:
        with self._changed:
            if not self._cancelled <= self._held:
                strays = sorted(self._cancelled - self._held)
                raise InvariantBroken(f"cancelled but not held: {strays}")
