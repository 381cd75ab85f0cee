"""A batch notifies with an empty message, which costs nothing where no server answers."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from db.session import Database
from tasks import submit_batch
from tasks.app import app
from tasks.generate import GenerateContract
from tasks.submission.batch import CHUNK
from tasks.submission.notifications import notification_channel
from tests.running.producers import FAKE, producing, write_config
from tests.running.workers import on_sqlite
from tests.samples.jobs import states
from tests.services.servers import ValkeyServer


@contextmanager
def producer(database: Database, broker_url: str, folder: Path) -> Iterator[None]:
    config = write_config(folder / "tidemill.toml", {"fake": FAKE})
    with producing(database.url.render_as_string(hide_password=False), broker_url, config):
        yield


def submit(num_jobs: int, run_key: str | None = None) -> None:
    contracts = (GenerateContract.parse({"text": f"a {n}"}) for n in range(num_jobs))
    submit_batch(contracts, name="night", run_key=run_key)


class SilentServer:
    """Takes connections, and never says a word."""

    def __init__(self) -> None:
        self.num_taken = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._taken: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listening.getsockname()[1]}/0"

    def _run(self) -> None:
        while True:
            try:
                self._taken.append(self._listening.accept()[0])
            except OSError:
                return
            self.num_taken += 1

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        for each in self._taken:
            each.close()


@on_sqlite
def test_each_new_chunk_of_a_batch_notifies_once_with_an_empty_message(
    database: Database, valkey: ValkeyServer, tmp_path: Path
) -> None:
    url = valkey.new_database()
    number = url.rpartition("/")[2]
    with producer(database, url, tmp_path), redis.Redis.from_url(url) as client:
        heard = client.pubsub()
        heard.psubscribe("*")  # whatever goes over this server
        heard.get_message(timeout=60)
        submit(CHUNK + 1, run_key="k")
        submit(CHUNK + 1, run_key="k")  # nothing of it is new
        client.publish("end", "")
        messages = []
        while (message := heard.get_message(timeout=60)) and message["channel"] != b"end":
            messages.append((message["channel"], message["data"]))
        heard.close()
    ours = [each for each in messages if each[0].endswith(b"tidemill.notifications")]
    assert ours == [(f"/{number}.tidemill.notifications".encode(), b"")] * 2


@on_sqlite
def test_without_redis_a_batch_is_kept(database: Database, tmp_path: Path) -> None:
    with producer(database, "redis://127.0.0.1:1/0", tmp_path):
        submit(3)
    assert states(database) == {"queued": 3}


@on_sqlite
def test_a_redis_that_does_not_answer_is_asked_once_a_batch(
    database: Database, tmp_path: Path
) -> None:
    silent = SilentServer()
    with producer(database, silent.url, tmp_path):
        submit(3 * CHUNK)
    silent.close()
    assert states(database) == {"queued": 3 * CHUNK}
    assert silent.num_taken == 1


@on_sqlite
def test_an_invalid_redis_address_does_not_refuse_a_batch(
    database: Database, tmp_path: Path
) -> None:
    with producer(database, "redis://host:port/x", tmp_path):
        submit(3)
    assert states(database) == {"queued": 3}


@pytest.mark.parametrize(
    ("url", "channel"),
    [
        ("redis://user:p%40ss@host/3", "/3.tidemill.notifications"),
        ("rediss://:secret@host:7000", "/0.tidemill.notifications"),
        ("redis+socket:///run/redis.sock", None),
        ("memory://", None),
        ("amqp://host//", None),
    ],
)
def test_only_redis_has_a_notification_channel(url: str, channel: str | None) -> None:
    found = notification_channel(app.connection_for_write(url))
    assert (found.name if found else None) == channel
