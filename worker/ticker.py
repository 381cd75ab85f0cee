"""Something done every so often, on a thread of its own that no error ends."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

AFTER_ERROR_SECONDS = 2.0


class Ticker:
    """Calls `tick`, waits for as long as it returns (or `seconds`), and again, until stopped.

    A tick that raises is logged by its type, for its text may hold a user's,
    and is tried again: a thread that died would be a worker that looks well.
    """

    def __init__(self, name: str, seconds: float, tick: Callable[[], float | None]) -> None:
        self._name = name
        self._seconds = seconds
        self._tick = tick
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Return when the tick that runs has ended. May be called twice, or by the tick."""
        self._stopping.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        wait_seconds = self._seconds
        while not self._stopping.wait(wait_seconds):
            try:
                wait_seconds = self._tick() or self._seconds
            except Exception as error:
                log.warning(
                    "tick failed", extra={"part": self._name, "error": type(error).__name__}
                )
                wait_seconds = AFTER_ERROR_SECONDS
