"""Outbox: completions on their way out of the loop."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Condition

from worker.engine.completion import Completion
from worker.engine.messages import Output, Progress


class Outbox:
    """Filled by the loop and the encoder, emptied by the writer, who may lag several steps
    behind and then sends them as one. What it holds is bounded by the ledger."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._waiting: list[Completion | Output] = []
        self._progress = Progress()
        self._closed = False

    def put(self, completions: Iterable[Completion], progress: Progress) -> None:
        with self._changed:
            self._waiting.extend(completions)
            self._progress = progress
            if self._waiting:
                self._changed.notify()

    def refuse(self, output: Output) -> None:
        """An answer that needs no step."""
        with self._changed:
            self._waiting.append(output)
            self._changed.notify()

    def take(self) -> tuple[list[Completion | Output], Progress]:
        """All that is here and how far the loop is; waits for something. Nothing: closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            taken, self._waiting = self._waiting, []
            return taken, self._progress

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
