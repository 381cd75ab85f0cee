"""PeriodicThread: calls a function periodically, on a thread that no error ends."""

import logging
import threading
from collections.abc import Callable

from tasks.outage import Outage

log = logging.getLogger(__name__)

AFTER_ERROR_SECONDS = 2.0


class PeriodicThread:
    """Calls `tick`, waits for the seconds that it returns (or `seconds`), and repeats.

    `wake` ends a wait early, but not its first `rest_seconds`, however often it is called.

    A tick that raises is logged by its type, since its message may quote a user's text, and is
    tried again: a dead thread would make a worker look healthy that is not.
    """

    def __init__(
        self,
        name: str,
        seconds: float,
        tick: Callable[[], float | None],
        rest_seconds: float = 0.0,
    ) -> None:
        self._name = name
        self._seconds = seconds
        self._tick = tick
        self._rest_seconds = rest_seconds
        self._changed = threading.Condition()
        self._woken = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Tick soon; if a tick is running, once more after it."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Return when the running tick has ended. May be called twice, or by the tick."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        failing = Outage(log, "tick failed", "ticks succeed again")
        wait_seconds = self._seconds
        while self._wait(wait_seconds):
            try:
                wait_seconds = self._tick() or self._seconds
            except Exception as error:
                failing.began(error, part=self._name)
                wait_seconds = AFTER_ERROR_SECONDS
            else:
                failing.ended(part=self._name)

    def _wait(self, seconds: float) -> bool:
        """Wait for the next tick. Returns whether to tick again."""
        rest_seconds = min(self._rest_seconds, seconds)
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, rest_seconds)
            self._changed.wait_for(lambda: self._stopping or self._woken, seconds - rest_seconds)
            self._woken = False
            return not self._stopping
