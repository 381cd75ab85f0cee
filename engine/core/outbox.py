"""Outbox: completions on their way out of the loop."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Condition

from engine.core.completion import Completion
from engine.protocol.messages import Output, Progress

# A parent that hears nothing for long takes the process to hang; an answer may take longer.
PROGRESS_SECONDS = 2.0


class Outbox:
    """Filled by the loop and the encoder, emptied by the writer, who may lag several steps
    behind and then sends them as one. What it holds is bounded by the tracker."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._waiting: list[Completion | Output] = []
        self._progress = self._told = Progress()
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

    def take(self) -> tuple[list[Completion | Output], Progress] | None:
        """All that is here, and how far the loop is; None: closed, and nothing is here.

        Waits for something to be here, or after a while for the loop to have gone on.
        """
        with self._changed:
            while not (self._waiting or self._closed):
                is_silent = not self._changed.wait(PROGRESS_SECONDS)
                if is_silent and self._progress != self._told:
                    break
            if self._closed and not self._waiting:
                return None
            taken, self._waiting = self._waiting, []
            self._told = self._progress
            return taken, self._told

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
