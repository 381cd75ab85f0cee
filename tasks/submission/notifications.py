"""Notifications: a producer tells the dispatcher that jobs are waiting to be published.

A notification is an empty message on a Redis channel. The dispatcher then polls the database, which
it would do a little later anyway, so a lost notification does no harm.
"""

import logging
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from kombu import Connection
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tasks.app import app

log = logging.getLogger(__name__)

# The name has the number of the database, since channels are shared by all databases. Its prefix is
# that of Celery's own channels, so that an access list that allows those allows this one.
CHANNEL = "/{number}.tidemill.notifications"
PATIENCE_SECONDS = 0.5  # a producer waits so long for a Redis that does not answer


@dataclass(frozen=True, slots=True)
class NotificationChannel:
    """The channel's name, and a client of Redis, which connects at first use."""

    client: Redis
    name: str


def notification_channel(connection: Connection) -> NotificationChannel | None:
    """The channel at a connection's broker; None for brokers other than Redis.

    It has its own client, without retries: kombu and redis-py take seconds to find out that a
    server does not answer.
    """
    if connection.transport_cls not in ("redis", "rediss") or "://" in connection.hostname:
        return None
    number = int((connection.virtual_host or "").strip("/") or 0)
    client = Redis(
        host=connection.hostname,
        port=connection.port or 6379,
        db=number,
        username=connection.userid,
        password=connection.password,
        ssl=bool(connection.ssl),
        **(connection.ssl if isinstance(connection.ssl, dict) else {}),
        socket_connect_timeout=PATIENCE_SECONDS,
        socket_timeout=PATIENCE_SECONDS,
        socket_keepalive=True,
        health_check_interval=25,  # else a listener would not notice that the other end is gone
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    return NotificationChannel(client, CHANNEL.format(number=number))


class Notifier:
    """Sends notifications until one fails; after that it is silent."""

    def __init__(self) -> None:
        self._channel: NotificationChannel | None = None
        self._is_silent = False

    def notify(self) -> None:
        """Notify the dispatcher.

        Never raises: the jobs are in the database and are published anyway.
        """
        if self._is_silent:
            return
        try:
            self._channel = self._channel or notification_channel(app.connection_for_write())
            if self._channel is None:
                self._is_silent = True
            else:
                self._channel.client.publish(self._channel.name, b"")
        except Exception as error:  # Redis is away or refuses, or the address is not valid
            self._is_silent = True
            log.info("not notified", extra={"error": type(error).__name__})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._channel is not None:
            self._channel.client.close()
