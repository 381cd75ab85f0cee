"""Hears the bell of those who keep many jobs, so that the dispatcher need not wait for its time."""

import logging
import threading
from collections.abc import Callable

from redis.exceptions import ResponseError

from tasks.app import app
from tasks.notifications import Line, line
from worker.periodic_thread import Ticker

log = logging.getLogger(__name__)

RECONNECT_SECONDS = 2.0
REFUSED_SECONDS = 300.0
STOP_SECONDS = 0.5  # how late it notices that it should end


class Listener:
    """A thread of its own, with its own connection to Redis. Other brokers have no bell.

    Calls `on_ring` for each ring, and once whenever it has begun to listen, because it
    may have missed some. What it misses the dispatcher finds at its next look.
    """

    def __init__(self, on_ring: Callable[[], None]) -> None:
        self._on_ring = on_ring
        self._stopping = threading.Event()
        self._line: Line | None = line(app.connection_for_read())
        self._ticker = Ticker("listener", RECONNECT_SECONDS, self._tick)

    def start(self) -> None:
        if self._line is not None:
            self._ticker.start()
            self._ticker.wake()

    def stop(self) -> None:
        self._stopping.set()
        self._ticker.stop()
        if self._line is not None:
            self._line.client.close()

    def _tick(self) -> float | None:
        """Listen until told to stop; raises when the connection is lost."""
        try:
            self._listen()
        except ResponseError as error:
            # An access list, most likely. It costs half a second a batch, and no job.
            log.warning("no rings are heard", extra={"error": type(error).__name__})
            return REFUSED_SECONDS
        return None

    def _listen(self) -> None:
        assert self._line is not None
        with self._line.client.pubsub() as heard:  # type: ignore[no-untyped-call]  # redis's own
            heard.subscribe(self._line.channel)
            while not self._stopping.is_set():
                # The answer to the subscription is a message too.
                if heard.get_message(timeout=STOP_SECONDS) is not None:
                    self._on_ring()
