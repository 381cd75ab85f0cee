"""The bell: tells the dispatcher that jobs were kept which it is to send out.

Nothing goes over the channel but an empty message. Whoever hears it looks at the
database, and would have looked by itself a little later, so a ring may be lost.
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

# Behind the number of the database, for channels know none. It is where Celery's own
# channels are, so that who may use those by an access list may use this one.
CHANNEL = "/{number}.tidemill.bell"
PATIENCE_SECONDS = 0.5  # of whoever rings, with a Redis that does not answer


@dataclass(frozen=True, slots=True)
class Line:
    """A client of Redis, which connects when it is first used, and the bell's channel."""

    client: Redis
    channel: str


def line(connection: Connection) -> Line | None:
    """A line of one's own to where a connection leads; None: that is not Redis.

    It tries everything once. kombu's and redis-py's own ways take seconds to learn that
    nobody answers.
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
        health_check_interval=25,  # else a listener would not learn that the other end is gone
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    return Line(client, CHANNEL.format(number=number))


class Bell:
    """Rings as long as that costs nothing: after a failure it stays silent."""

    def __init__(self) -> None:
        self._line: Line | None = None
        self._is_mute = False

    def ring(self) -> None:
        """Never raises: what was kept is kept, and is sent out without a ring too."""
        if self._is_mute:
            return
        try:
            self._line = self._line or line(app.connection_for_write())
            if self._line is None:
                self._is_mute = True
            else:
                self._line.client.publish(self._line.channel, b"")
        except Exception as error:  # Redis away, an access list, an address that is none
            self._is_mute = True
            log.info("not rung", extra={"error": type(error).__name__})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._line is not None:
            self._line.client.close()
