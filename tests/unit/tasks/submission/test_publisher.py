"""Messages are published over an open connection, or over a new one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from kombu.exceptions import OperationalError

from db.lane import Lane
from tasks.queues import queue_name
from tasks.submission.publisher import JobMessage, publish
from tests.running.producers import FAKE, producing, write_config
from tests.services.servers import ValkeyServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A server of this test's own, with this process as its producer."""
    config = write_config(tmp_path / "tidemill.toml", {"fake": FAKE})
    with ValkeyServer.started(tmp_path) as started:
        broker_url = f"redis://127.0.0.1:{started.port}/0"
        with producing(f"sqlite:///{tmp_path}/tidemill.db", broker_url, config):
            yield started


def messages(number: int) -> list[JobMessage]:
    return [JobMessage("fake", Lane.BULK, (uuid4(), uuid4())) for _ in range(number)]


def num_connections_received(server: ValkeyServer) -> int:
    with redis.Redis(port=server.port) as client:
        return int(client.info("stats")["total_connections_received"])


def num_waiting(server: ValkeyServer) -> int:
    with redis.Redis(port=server.port) as client:
        return int(client.llen(queue_name("fake", Lane.BULK)))


def test_messages_are_published_over_one_connection(server: ValkeyServer) -> None:
    publish(messages(1))
    before = num_connections_received(server)
    for _ in range(5):
        publish(messages(2))
    assert num_connections_received(server) == before + 1  # the connection of this query
    assert num_waiting(server) == 11


def test_a_redis_that_was_started_again_gets_what_is_published_then(server: ValkeyServer) -> None:
    publish(messages(1))
    server.stop()
    server.start()
    publish(messages(3))
    assert num_waiting(server) == 3  # the first was in memory only


def test_a_redis_that_is_away_is_an_error_and_no_more_when_it_is_back(
    server: ValkeyServer,
) -> None:
    publish(messages(1))
    server.stop()
    for _ in range(2):
        with pytest.raises((OperationalError, OSError)):
            publish(messages(1))
    server.start()
    publish(iter(messages(2)))
    assert num_waiting(server) == 2
