"""NotificationListener: wakes the dispatcher when a batch was submitted, before its next poll."""

import logging
import threading
from collections.abc import Callable

from redis.exceptions import ResponseError

from tasks.app import app
from tasks.submission.notifications import NotificationChannel, notification_channel
from worker.periodic_thread import PeriodicThread

log = logging.getLogger(__name__)

RECONNECT_SECONDS = 2.0
REFUSED_SECONDS = 300.0
STOP_SECONDS = 0.1  # how late it notices that it should end


class NotificationListener:
    """A thread with its own connection to Redis. Other brokers have no notifications.

    Calls `on_notification` for each notification, and whenever it has started to listen, since some
    may have been missed. The dispatcher's next poll finds the rest.
    """

    def __init__(self, on_notification: Callable[[], None]) -> None:
        self._on_notification = on_notification
        self._stopping = threading.Event()
        self._channel: NotificationChannel | None = notification_channel(app.connection_for_read())
        self._thread = PeriodicThread("notification-listener", RECONNECT_SECONDS, self._tick)

    def start(self) -> None:
        if self._channel is not None:
            self._thread.start()
            self._thread.wake()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.stop()
        if self._channel is not None:
            self._channel.client.close()

    def _tick(self) -> float | None:
        """Listen until the thread is stopped. Raises when the connection is lost."""
        try:
            self._listen()
        except ResponseError as error:
            # An access list, most likely. It delays a batch by half a second and loses no job.
            log.warning("notifications are refused", extra={"error": type(error).__name__})
            return REFUSED_SECONDS
        return None

    def _listen(self) -> None:
        assert self._channel is not None
        with self._channel.client.pubsub() as pubsub:  # type: ignore[no-untyped-call]  # redis's own
            pubsub.subscribe(self._channel.name)
            while not self._stopping.is_set():
                # The answer to the subscription is a message too.
                if pubsub.get_message(timeout=STOP_SECONDS) is not None:
                    self._on_notification()
