"""ConsumerWatchdog: detects a stalled consumer: its queues hold messages, but it takes none.

All known causes are fixed elsewhere; this is for unknown ones. The worker logs it and exits, for
its supervisor to restart it.
"""

import logging
import time
from collections.abc import Callable

from worker.dispatcher.broker import Broker
from worker.periodic_thread import PeriodicThread

log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0


class ConsumerWatchdog:
    """A thread with its own connection to the broker."""

    def __init__(
        self,
        queues: list[str],
        stall_seconds: float,
        is_idle: Callable[[], bool],
        on_stalled: Callable[[], None],
    ) -> None:
        """is_idle: returns whether the worker could take a message now"""
        self._queues = queues
        self._stall_seconds = stall_seconds
        self._is_idle = is_idle
        self._on_stalled = on_stalled
        self._broker = Broker()
        self._waiting_since: float | None = None
        self._thread = PeriodicThread(
            "consumer-watchdog", min(CHECK_SECONDS, stall_seconds / 2), self._check
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._thread.stop()
        self._broker.close()

    def _check(self) -> None:
        try:
            is_stalled = self.is_stalled(time.monotonic())
        except Exception:
            self._waiting_since = None  # no consumer gets a message while the broker is away
            raise
        if is_stalled:
            log.critical(
                "consumer stalled: messages wait and none arrives", extra={"queues": self._queues}
            )
            self._on_stalled()

    def is_stalled(self, now: float) -> bool:
        """Whether messages have waited for so long while this worker was idle."""
        if not (self._is_idle() and any(map(self._broker.num_messages, self._queues))):
            self._waiting_since = None
            return False
        if self._waiting_since is None:
            self._waiting_since = now
        return now - self._waiting_since >= self._stall_seconds
