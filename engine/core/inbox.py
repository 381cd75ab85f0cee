"""Inbox: encoded requests on their way to the loop."""

from __future__ import annotations

from threading import Condition

from engine.core.sequence import Sequence


class Inbox:
    """Filled by the encoder, emptied by the loop. What it holds is bounded by the tracker."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._sequences: list[Sequence] = []
        self._closed = False

    def put(self, sequence: Sequence) -> None:
        with self._changed:
            self._sequences.append(sequence)
            self._changed.notify()

    def take(self) -> list[Sequence]:
        """All that is here, in order of arrival; does not wait."""
        with self._changed:
            taken, self._sequences = self._sequences, []
            return taken

    def wait(self) -> None:
        """Until there is something to take, or nothing more to wait for."""
        with self._changed:
            self._changed.wait_for(lambda: self._sequences or self._closed)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    @property
    def closed(self) -> bool:
        return self._closed
