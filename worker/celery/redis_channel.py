"""kombu's Redis channel, mended in one place.

When Redis goes away, kombu 5.7 closes the channel and then tries to give its
unacked messages back over a connection that is gone already. What comes of it
is an AttributeError, which Celery takes for a fault of the worker and ends it.
As the connection error that it is, Celery logs it and connects again. The
messages are not missed: the database says what is due.
"""

from typing import Any

from kombu.transport.redis import Channel
from redis.exceptions import ConnectionError as RedisConnectionError

_connparams = Channel._connparams


def _connparams_of_an_open_connection(channel: Channel, asynchronous: bool = False) -> Any:
    if channel.connection is None or channel.connection.client is None:
        raise RedisConnectionError("the channel's connection is closed")
    return _connparams(channel, asynchronous)


def mend() -> None:
    """Let every channel of this process say that its connection is closed."""
    Channel._connparams = _connparams_of_an_open_connection
