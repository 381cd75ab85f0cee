"""Notices a worker that has gone deaf: its queues hold messages, and none reaches it.

Every known way for that to happen is mended elsewhere; this is for the unknown
ones. The worker says so and ends, for its supervisor to start it again.
"""

import logging
import time
from collections.abc import Callable

from worker.dispatcher.broker import Broker
from worker.periodic_thread import Ticker

log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0


class Hearing:
    """A thread of its own, with its own connection to the broker."""

    def __init__(
        self,
        queues: list[str],
        deaf_seconds: float,
        is_idle: Callable[[], bool],
        on_deaf: Callable[[], None],
    ) -> None:
        self._queues = queues
        self._deaf_seconds = deaf_seconds
        self._is_idle = is_idle
        self._on_deaf = on_deaf
        self._broker = Broker()
        self._unheard_since: float | None = None
        self._ticker = Ticker("hearing", min(CHECK_SECONDS, deaf_seconds / 2), self._tick)

    def start(self) -> None:
        self._ticker.start()

    def stop(self) -> None:
        self._ticker.stop()
        self._broker.close()

    def _tick(self) -> None:
        try:
            deaf = self.is_deaf(time.monotonic())
        except Exception:
            self._unheard_since = None  # nobody hears anything now
            raise
        if deaf:
            log.critical("deaf: messages wait and none arrives", extra={"queues": self._queues})
            self._on_deaf()

    def is_deaf(self, now: float) -> bool:
        """Whether messages have waited for so long while this worker had nothing to do."""
        waiting = self._is_idle() and any(map(self._broker.num_messages, self._queues))
        if not waiting:
            self._unheard_since = None
            return False
        if self._unheard_since is None:
            self._unheard_since = now
        return now - self._unheard_since >= self._deaf_seconds
