"""Outbox: the queue of completions and refusals from loop and tokenizer thread to the writer."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Condition

from engine.core.completion import Completion
from engine.protocol.output import Output
from engine.protocol.progress import Progress

# The parent kills a process that is silent for long; an answer may take longer than that.
PROGRESS_SECONDS = 2.0


class Outbox:
    """Holds completions and refusals for the writer. The tracker bounds its length.

    The writer may lag several steps behind; it then sends them as one frame.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._waiting: list[Completion | Output] = []
        self._progress = self._sent_progress = Progress()
        self._closed = False

    def put(self, completions: Iterable[Completion], progress: Progress) -> None:
        """Queue the completions of a step and the loop's progress after it."""
        with self._changed:
            self._waiting.extend(completions)
            self._progress = progress
            if self._waiting:
                self._changed.notify()

    def refuse(self, output: Output) -> None:
        """Queue an output that needed no step: a refusal or a cancellation."""
        with self._changed:
            self._waiting.append(output)
            self._changed.notify()

    def take(self) -> tuple[list[Completion | Output], Progress] | None:
        """Take the queued completions and the progress; None once closed and empty.

        Blocks until something is queued. After PROGRESS_SECONDS it returns an empty list if the
        progress has changed, so that the parent sees that the loop is alive.
        """
        with self._changed:
            while not (self._waiting or self._closed):
                is_silent = not self._changed.wait(PROGRESS_SECONDS)
                if is_silent and self._progress != self._sent_progress:
                    break
            if self._closed and not self._waiting:
                return None
            completions, self._waiting = self._waiting, []
            self._sent_progress = self._progress
            return completions, self._progress

    def close(self) -> None:
        """Let the writer end after it has sent everything that is queued."""
        with self._changed:
            self._closed = True
            self._changed.notify()
