"""LocalStack: everything that `tidemill up` starts in order, and stops in reverse order.

    Valkey -> database -> worker

Parts without a given address are embedded. Each is a child of this process and does not outlive it.
"""

import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from cli.commands.start.worker import celery_command
from cli.errors import AlreadyRunning, PartFailed
from cli.stack.child_process import Child
from cli.stack.embedded_valkey import EmbeddedValkey
from db.connection.address import DATABASE_FILE, RUN_FILE, STORES_FILE
from db.connection.database_url import file_url
from db.queries import worker_registry
from db.schema import migrate
from db.session import Database

LOCK_FILE = "up.lock"
POLL_SECONDS = 0.1
DRAIN_SECONDS = 60.0  # the worker's own limit is shorter
QUIT_SECONDS = 10.0
OF_EVERY_LINE = ("time", "level", "logger", "event")  # of a log in JSON


class LocalStack:
    """The parts of one data folder. Always: `stop` stops every part that was started."""

    def __init__(
        self,
        data_dir: Path,
        config: Path,
        *,
        models: str | None = None,
        redis_url: str | None = None,
        database_url: str | None = None,
        metrics_port: int | None = None,
    ) -> None:
        self.metrics_port = metrics_port
        self.data_dir = data_dir.resolve()
        self._config = config.resolve()
        self._models = models
        self.redis_url = redis_url or ""
        self._valkey = None if redis_url else EmbeddedValkey(self.data_dir / "valkey")
        self.database = Database(database_url or file_url(self.data_dir / DATABASE_FILE))
        self._is_embedded = not database_url
        self._lock: IO[str] | None = None
        self._worker: Child | None = None
        self._num_shown = 0

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment variables by which a process finds this stack."""
        return {
            "TIDEMILL_REDIS_URL": self.redis_url,
            "TIDEMILL_DATABASE_URL": self.database.url.render_as_string(hide_password=False),
            "TIDEMILL_CONFIG": str(self._config),
        }

    @property
    def log(self) -> Path:
        return self.data_dir / "worker.log"

    # --- starting ------------------------------------------------------------------------------

    def start_stores(self) -> None:
        """Lock the folder, start Valkey, and bring the database to our revision.

        Raises AlreadyRunning, PartFailed or DatabaseError.
        """
        make_private(self.data_dir)
        self._take_folder()
        if self._valkey is not None:
            self._valkey.start()
            self.redis_url = self._valkey.url
        if self._is_embedded:
            # In a folder that was there before, the file alone keeps others from the texts. Where
            # it cannot be made, the database says so better.
            with suppress(OSError):
                os.close(os.open(self.data_dir / DATABASE_FILE, os.O_CREAT | os.O_RDWR, 0o600))
        migrate(self.database)
        self._write(STORES_FILE)

    def start_worker(self) -> None:
        """Start the worker, which loads the models; `wait_for_worker` waits for that."""
        environment = {**os.environ, **self.environment}
        if self._models is not None:
            environment["TIDEMILL_MODELS"] = self._models
        if self.metrics_port is not None:
            environment["TIDEMILL_METRICS_PORT"] = str(self.metrics_port)
        self._worker = Child(celery_command("tidemill-up"), self.log, environment)

    def wait_for_worker(self, go_on: Callable[[], None]) -> None:
        """Wait until the worker takes jobs; raises PartFailed.

        go_on: called at every check; raises to end the waiting
        """
        assert self._worker is not None
        name = f"{socket.gethostname()}:{self._worker.pid}:"
        while True:
            go_on()
            self.check()
            with self.database.read() as session:
                workers = session.scalars(worker_registry.live_workers()).all()
            if any(worker.name.startswith(name) for worker in workers):
                return
            time.sleep(POLL_SECONDS)

    def announce(self) -> None:
        """Tell commands in this folder that jobs are run."""
        self._write(RUN_FILE)

    def _write(self, name: str) -> None:
        """Write the addresses of the parts into a file; see `db.connection.address`."""
        written = {
            "redis_url": self.redis_url,
            "config": str(self._config),
            "pid": str(os.getpid()),
        }
        # Our own file is found by the folder, which may be moved.
        if name == RUN_FILE or not self._is_embedded:
            written["database_url"] = self.environment["TIDEMILL_DATABASE_URL"]
        part = self.data_dir / f"{name}.part"
        part.unlink(missing_ok=True)
        # The addresses have passwords in them.
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as to:
            json.dump(written, to)
        part.replace(self.data_dir / name)

    # --- running -------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise PartFailed if a part has ended by itself."""
        if self._worker is not None and self._worker.status is not None:
            raise PartFailed(
                f"the worker ended (status {self._worker.status}): "
                f"{reason_of(self._worker.last_lines())}"
            )
        if self._valkey is not None and self._valkey.status is not None:
            raise PartFailed(
                f"Valkey ended (status {self._valkey.status}):\n{self._valkey.last_lines()}"
            )

    def show_log(self) -> None:
        """Print the worker's new output."""
        if self._worker is not None:
            written = self._worker.new_output(self._num_shown)
            self._num_shown += len(written)
            sys.stderr.buffer.write(written)
            sys.stderr.flush()

    # --- stopping ------------------------------------------------------------------------------

    def stop(self, stops_now: Callable[[], bool] = lambda: False) -> None:
        """Stop every part; the worker finishes its jobs first, unless `stops_now`."""
        if self._lock is None:
            return  # another has the folder, or nobody
        (self.data_dir / RUN_FILE).unlink(missing_ok=True)
        if self._worker is not None:
            self._stop_worker(self._worker, stops_now)
        if self._valkey is not None:
            self._valkey.stop()
        self.database.close()
        self._lock.close()
        self._lock = None

    def _stop_worker(self, worker: Child, stops_now: Callable[[], bool]) -> None:
        worker.signal(signal.SIGTERM)
        deadline = time.monotonic() + DRAIN_SECONDS
        while not worker.wait(POLL_SECONDS):
            if stops_now() or time.monotonic() > deadline:
                worker.signal(signal.SIGQUIT)
                worker.wait(QUIT_SECONDS)
                break
        worker.kill()

    def _take_folder(self) -> None:
        """Lock the folder; the kernel releases the lock when this process dies."""
        self._lock = (self.data_dir / LOCK_FILE).open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            pid = self._lock.read().strip()
            self._lock.close()
            self._lock = None
            raise AlreadyRunning(
                f"a `tidemill up` already runs in {self.data_dir} (process {pid}); "
                "stop it with Ctrl-C there, or give this one another --data-dir"
            ) from None
        # One that is there now is of an `up` that was killed.
        (self.data_dir / RUN_FILE).unlink(missing_ok=True)
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()


def make_private(folder: Path) -> None:
    """Make a folder, and its missing parents, for this user alone.

    `mkdir(parents=True)` would leave the parents open to others, and one of them may be another
    stack's folder.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


def reason_of(last_lines: str) -> str:
    """The reason that a worker ended: its critical log lines, or else its last lines."""
    critical = "\n".join(filter(None, map(critical_event, last_lines.splitlines())))
    return critical or f"\n{last_lines}"


def critical_event(line: str) -> str:
    """The event of a critical log line, in either format; empty for other lines."""
    if not line.startswith("{"):
        return line.partition(" CRITICAL ")[2]
    try:
        event = json.loads(line)
    except ValueError:
        return ""
    if event.get("level") != "CRITICAL":
        return ""
    fields = [f"{name}={value}" for name, value in event.items() if name not in OF_EVERY_LINE]
    return " ".join([str(event.get("event")), *fields])
