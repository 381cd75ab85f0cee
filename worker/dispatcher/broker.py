"""Broker: the length of each queue, and whether Redis lost its data."""

from typing import Any
from uuid import uuid4

from kombu import Connection, Queue
from kombu.exceptions import ChannelError

from tasks.app import app

MARKER = "tidemill:marker"


class Broker:
    """The dispatcher's own connection to the broker."""

    def __init__(self) -> None:
        self._connection: Connection = app.connection_for_read()

    def num_messages(self, queue: str) -> int:
        """The number of waiting messages; 0 for a queue that does not exist."""
        try:
            return int(
                Queue(queue, channel=self._channel).queue_declare(passive=True).message_count
            )
        except ChannelError:
            return 0

    def lost_its_data(self) -> bool:
        """Whether the marker that the last call set is gone. Sets it again.

        Brokers other than Redis keep confirmed messages.
        """
        if not self.is_redis:
            return False
        return bool(self.client.set(MARKER, str(uuid4()), nx=True))

    @property
    def is_redis(self) -> bool:
        return bool(self._connection.transport.driver_type == "redis")

    @property
    def client(self) -> Any:
        """The redis-py client of this connection."""
        return self._channel.client

    @property
    def _channel(self) -> Any:
        self._connection.ensure_connection(max_retries=1, timeout=5)
        return self._connection.default_channel

    def close(self) -> None:
        self._connection.release()
