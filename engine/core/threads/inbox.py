"""Inbox: the queue of sequences from the tokenizer thread to the loop."""

from __future__ import annotations

from threading import Condition

from engine.core.sequence import Sequence


class Inbox:
    """Holds sequences for the loop. The tracker bounds its length."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._sequences: list[Sequence] = []
        self._closed = False

    def put(self, sequence: Sequence) -> None:
        with self._changed:
            self._sequences.append(sequence)
            self._changed.notify()

    def take(self) -> list[Sequence]:
        """Take every queued sequence, in order of arrival, without waiting."""
        with self._changed:
            sequences, self._sequences = self._sequences, []
            return sequences

    def wait(self) -> None:
        """Block until a sequence is queued or the inbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._sequences or self._closed)

    def close(self) -> None:
        """Let the loop end after its present step."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    @property
    def closed(self) -> bool:
        return self._closed
