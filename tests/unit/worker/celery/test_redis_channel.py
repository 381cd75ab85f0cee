"""The code of kombu and Celery that is patched here has not changed since it was read."""

import hashlib
import inspect

import pytest
import redis
from celery.worker.consumer import Consumer
from kombu import Connection
from kombu.transport.redis import Channel, QoS

from tests.running.workers import until
from tests.services.servers import ValkeyServer
from worker.celery import redis_channel

READ = {
    Channel.close: "101e9b9cdad4",
    Channel._brpop_read: "c42518699709",
    Channel._queue_bind: "29b73e023af6",
    Channel._receive_one: "d59b8751d897",
    Channel.get_table: "a4ba78a22653",
    Channel._connparams: "e9a4295085a8",
    QoS.restore_by_tag: "58e161d81b6f",
    Consumer.create_task_handler: "292c5a681f10",
    Consumer.on_decode_error: "e3538c586a7f",
    Consumer.on_unknown_message: "213bd3ee55cb",
    Consumer.on_unknown_task: "35e6cbe56494",
    Consumer.on_invalid_task: "9893e7a4eee3",
}


@pytest.mark.parametrize(
    ("mended", "digest"), READ.items(), ids=lambda each: getattr(each, "__name__", "")
)
def test_the_library_code_that_we_mend_is_unchanged(mended: object, digest: str) -> None:
    """If this fails: read the new code, and check whether `worker.celery.redis_channel` and
    `worker.celery.consumer` still patch it correctly."""
    source = inspect.getsource(mended)  # type: ignore[arg-type]
    assert hashlib.sha256(source.encode()).hexdigest()[:12] == digest


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a warning about kombu itself
def test_a_channel_that_waits_for_a_message_is_closed_at_once_and_takes_none(
    valkey: ValkeyServer,
) -> None:
    """Else closing would take the whole wait, which is an hour."""
    redis_channel.mend()
    url = valkey.new_database()
    with Connection(url) as connection, redis.Redis.from_url(url) as client:
        channel = connection.channel()
        channel.basic_consume("night", no_ack=False, callback=print, consumer_tag="one")
        channel.client.connection = channel.client.connection_pool.get_connection()
        channel._brpop_start(timeout=3600)
        until(
            lambda: any(each["cmd"] == "brpop" for each in client.client_list()),
            "a client that waits",
        )
        channel.close()
        client.lpush("night", b"a message")
        assert client.llen("night") == 1
