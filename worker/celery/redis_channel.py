"""Fixes for kombu's Redis channel. Each method replaces one of kombu 5.7; `test_redis_channel.py`
fails when another version has other code there.

- When Redis goes away, kombu closes the channel and then tries to restore its unacked messages over
  the closed connection. That raises an AttributeError, for which Celery ends the worker. Raised as
  a connection error, Celery logs it and reconnects. The messages need no restoring: the dispatcher
  publishes due jobs again.
- A queue entry that is no envelope raises any exception and ends the worker. Here it is parsed by
  `worker.celery.envelope`, and quarantined if it is malformed.
- An unacked message that cannot be parsed stops the restoring of all later ones, and one that
  cannot be restored is logged, with its text, and lost. Both are quarantined.
- A key of another type in place of a queue, or of kombu's own data, makes Redis answer with an
  error for ever. It is renamed and quarantined.
- A channel that is closed waits for a message for up to a second, and so does the worker that
  should stop. Redis is asked to answer at once.
- A broadcast (remote control, events) that cannot be read is dropped and ends no worker.
- kombu reads a broadcast when its socket is readable. If the connection has ended, redis-py
  reconnects and then waits without limit for a broadcast: the worker takes no more messages and
  does not stop. Here the wait is limited to `BROADCAST_SECONDS`.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty
from typing import Any

from kombu.transport.redis import Channel, QoS
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tasks.quarantine import Reason, SetAside
from worker import quarantine
from worker.celery import envelope
from worker.celery.envelope import Malformed

log = logging.getLogger(__name__)

# The connection's fault, not the message's. kombu's own list has KeyError in it.
CONNECTION_ERRORS = (OSError, RedisConnectionError, RedisTimeoutError)

BROADCAST_SECONDS = 1.0

_close: Callable[..., None] = Channel.close
_connparams: Callable[..., Any] = Channel._connparams
_initialize: Callable[..., None] = Channel.__init__
_queue_bind: Callable[..., None] = Channel._queue_bind
_receive_one: Callable[..., Any] = Channel._receive_one


def mend() -> None:
    """Apply the fixes to every channel of this process."""
    Channel.close = _close_without_waiting
    Channel._connparams = _connparams_of_an_open_connection
    Channel.__init__ = _initialize_among_right_types
    Channel._brpop_read = _read_and_deliver
    Channel._queue_bind = _bind_among_right_types
    Channel._receive_one = _receive_one_that_can_be_read
    Channel.get_table = _table_of_bindings
    QoS.restore_by_tag = _restore_or_set_aside


def _connparams_of_an_open_connection(channel: Channel, asynchronous: bool = False) -> Any:
    if channel.connection is None or channel.connection.client is None:
        raise RedisConnectionError("the channel's connection is closed")
    return _connparams(channel, asynchronous)


# --- queues ------------------------------------------------------------------------------------


def _read_and_deliver(channel: Channel, **options: Any) -> bool:
    """`Channel._brpop_read`; raises Empty when nothing came."""
    try:
        try:
            popped = channel.client.parse_response(channel.client.connection, "BRPOP", **options)
        except channel.connection_errors:
            channel.client.connection.disconnect()
            raise
        except ResponseError as error:
            if not _is_wrong_type(error):
                raise
            set_misplaced_aside(channel)
            raise Empty from None
        if not popped:
            raise Empty
        key, entry = popped
        queue = bytes_to_str(key).rsplit(channel.sep, 1)[0]
        channel._queue_cycle.rotate(queue)
        _deliver(channel, queue, entry)
        return True
    finally:
        channel._in_poll = None
        channel._flush_brpop_reauth()


def _deliver(channel: Channel, queue: str, entry: bytes) -> None:
    """Deliver a queue entry, or quarantine it."""
    try:
        message = envelope.read(entry, queue)
    except Malformed as fault:
        # A client is only made for malformed entries: making one takes as long as reading a
        # message.
        client = channel._create_client()
        quarantine.set_aside(client, quarantine.message_of(fault, queue, entry))
        return
    try:
        try:
            channel.connection._deliver(message, queue)
        except ResponseError as error:
            # Most likely Redis could not store it as unacked. It is already off its queue.
            if not _is_wrong_type(error):
                raise
            set_misplaced_aside(channel)
            channel.connection._deliver(message, queue)
    except (*CONNECTION_ERRORS, RedisError):
        raise
    except Exception as error:
        log.error("message not taken", extra={"error": type(error).__name__})
        identity = envelope.identity(message["headers"], message["properties"])
        unexpected = Malformed(Reason.UNEXPECTED, *identity)
        client = channel._create_client()
        quarantine.set_aside(client, quarantine.message_of(unexpected, queue, entry))
        channel.qos.ack(message["properties"]["delivery_tag"])


def _close_without_waiting(channel: Channel) -> None:
    """`Channel.close`, which reads the answer to the BRPOP that is under way."""
    if channel._in_poll:
        # An access list, a proxy or a closed connection prevents it; the channel then waits as in
        # kombu.
        with suppress(Exception):
            host, port = channel._in_poll._sock.getsockname()[:2]
            client = channel._create_client()
            for each in client.client_list():
                if each["addr"] in (f"{host}:{port}", f"[{host}]:{port}"):
                    client.client_unblock(int(each["id"]))
    _close(channel)


# --- keys of another type ------------------------------------------------------------------------


def _initialize_among_right_types(channel: Channel, *args: Any, **kwargs: Any) -> None:
    _initialize(channel, *args, **kwargs)
    set_misplaced_aside(channel)


def _bind_among_right_types(channel: Channel, exchange: str, *binding: Any) -> None:
    try:
        _queue_bind(channel, exchange, *binding)
    except ResponseError as error:
        if not _is_wrong_type(error):
            raise
        names = (channel.keyprefix_queue, channel.keyprefix_binding_permanent)
        _set_aside_unless(channel, {name % (exchange,): "set" for name in names})
        _queue_bind(channel, exchange, *binding)


def set_misplaced_aside(channel: Channel) -> None:
    """Rename and quarantine keys of a wrong type in place of a queue or of kombu's data."""
    from tasks.app import app

    queues = {*app.amqp.queues, *channel.active_queues}
    expected = {
        channel._q_for_pri(queue, priority): "list"
        for queue in queues
        for priority in channel.priority_steps
    }
    expected |= {
        channel.unacked_key: "hash",
        channel.unacked_index_key: "zset",
        quarantine.KEY: "list",
    }
    _set_aside_unless(channel, expected)


def _set_aside_unless(channel: Channel, expected: Mapping[str, str]) -> None:
    client = channel._create_client()
    with client.pipeline(transaction=False) as pipeline:
        for key in expected:
            pipeline.type(key)
        pipeline.ttl(channel.unacked_mutex_key)
        # An access list may refuse either command although the queues are fine.
        *answers, mutex_seconds = pipeline.execute(raise_on_error=False)
    if mutex_seconds == -1:
        # A lock without an expiry is not kombu's, and would prevent the restoring of all messages.
        client.delete(channel.unacked_mutex_key)
    for (key, expected_value), answer in zip(expected.items(), answers, strict=True):
        kind = bytes_to_str(answer) if isinstance(answer, bytes) else expected_value
        if kind in (expected_value, "none"):
            continue
        # RENAME moves it whole and at once, whatever its size; it replaces an earlier misplaced
        # key.
        kept_at = f"{quarantine.MISPLACED}:{key}"
        try:
            client.rename(key, kept_at)
        except ResponseError:
            continue  # another worker was first
        body = f"a {kind} stood at {key}; it is now at {kept_at}".encode()
        message = SetAside(
            queue=key, reason=Reason.WRONG_TYPE, body=body, num_bytes=len(body), origin=kept_at
        )
        quarantine.set_aside(client, message)


def _is_wrong_type(error: ResponseError) -> bool:
    return "WRONGTYPE" in str(error)  # within a pipeline behind the number of the command


# --- what was delivered and not acked ------------------------------------------------------------


def _restore_or_set_aside(
    qos: QoS, tag: bytes | str, client: Any = None, leftmost: bool = False
) -> None:
    """`QoS.restore_by_tag`: put an unacked message back into its queue, or quarantine it."""

    def restore(pipe: Any) -> None:
        unacked = pipe.hget(qos.unacked_key, tag)
        pipe.multi()
        qos._remove_from_indices(tag, pipe)
        unreadable.clear()
        if not unacked:
            return
        try:
            payload, exchange, routing_key = loads(unacked)
            queues = [queue for queue in qos.channel._lookup(exchange, routing_key) if queue]
            message = envelope.checked(payload, queues[0])
            message["headers"]["redelivered"] = True
            pushed = [
                (qos.channel._q_for_pri(queue, message["properties"]["priority"]), dumps(message))
                for queue in queues
            ]
        except CONNECTION_ERRORS:
            raise
        except Exception as error:
            fault = error if isinstance(error, Malformed) else Malformed(Reason.NOT_AN_ENVELOPE)
            unreadable.append(quarantine.message_of(fault, qos.unacked_key, unacked))
            return
        for key, entry in pushed:
            (pipe.lpush if leftmost else pipe.rpush)(key, entry)

    unreadable: list[SetAside] = []
    with qos.channel.conn_or_acquire(client) as client:
        client.transaction(restore, qos.unacked_key)
        for message in unreadable:
            quarantine.set_aside(client, message)


# --- what is broadcast -----------------------------------------------------------------------


class _ClientWithTimeout:
    """A client for broadcasts whose reads time out."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def parse_response(self) -> Any:
        """Return the next broadcast; None after the time limit."""
        return self._client.parse_response(block=False, timeout=BROADCAST_SECONDS)

    def handle_message(self, response: Any) -> Any:
        return self._client.handle_message(response)


def _receive_one_that_can_be_read(channel: Channel, client: Any) -> Any:
    try:
        return _receive_one(channel, _ClientWithTimeout(client))
    except (*CONNECTION_ERRORS, ResponseError, Empty):
        raise
    except Exception as error:
        # A broadcast has no single recipient that waits for it, so it is dropped.
        log.warning("broadcast not taken", extra={"error": type(error).__name__})
        return None


def _table_of_bindings(channel: Channel, exchange: str) -> list[Any]:
    """`Channel.get_table`, without malformed members, of which one would hide all others."""
    with channel.conn_or_acquire() as client:
        members = client.smembers(channel.keyprefix_queue % exchange)
    table = []
    for member in members or ():
        parts = tuple(member.decode(errors="replace").split(channel.sep))
        if len(parts) == 3:
            table.append(parts)
    return table
