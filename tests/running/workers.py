"""Real workers, as an operator starts them, with a database and a Redis of their own."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from sqlalchemy import make_url

from db.models import Job
from db.session import Database
from db.states import UNFINISHED, JobState
from tests.forking.forked import MODULE, ForkedProcess, forks_named
from tests.forking.forked_children import name_of_engines
from tests.running.commands import CommandLine, Ended
from tests.running.producers import FAKE, Tables, write_config
from tests.samples import jobs

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 90

# Settings with which another worker takes over jobs a few seconds after a worker's death.
TAKEN_UP_SOON = {
    "lease_seconds": 2.0,
    "renew_seconds": 0.5,
    "lead_seconds": 1.5,
    "lost_seconds": 2.0,
}
# How `tidemill worker` and `tidemill up` start a worker.
CELERY_MAIN = "cli.stack.celery_main"
AS_STARTED = (*MODULE, CELERY_MAIN)
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def until(happened: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """The result of `happened` once it is true."""
    deadline = time.monotonic() + seconds
    while not (it := happened()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return it


@dataclass
class WorkerProcess:
    """One `celery worker`, its engine processes and its log."""

    process: subprocess.Popen[bytes]
    name: str  # Celery's
    log_path: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def children(self) -> list[psutil.Process]:
        """Its engines, including forked ones, whose parent is another process."""
        own = psutil.Process(self.pid).children(recursive=True)
        return [*own, *forks_named(name_of_engines(self.pid))]

    def wait_until_ready(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the worker consumes; it loads its models before."""
        until(
            lambda: " ready." in self.log or self.process.poll() is not None,
            "a ready worker",
            seconds,
        )
        assert self.process.poll() is None, self.log

    def pause(self, sqlite_url: str) -> None:
        """Suspend the process until SIGCONT, at a moment when it holds no lock of the database."""
        path = make_url(sqlite_url).database
        assert path is not None

        def paused() -> bool:
            self.process.send_signal(signal.SIGSTOP)
            # Until then a thread may take a lock and would keep it.
            until(self._is_stopped, "its stop")
            with closing(sqlite3.connect(path, timeout=0)) as connection:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError:
                    self.process.send_signal(signal.SIGCONT)
                    return False
            return True

        until(paused, "a moment between two transactions")

    def _is_stopped(self) -> bool:
        """Whether every thread is stopped; one in the kernel may still take a lock."""
        stats = Path(f"/proc/{self.pid}/task").glob("*/stat")
        return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in stats)

    def wait(self) -> int:
        """The exit status; if the process does not end, its threads' stacks go to its log."""
        try:
            return self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGUSR1)
            until(lambda: "most recent call first" in self.log, "the stacks")
            pytest.fail(f"{self.name} does not end:\n{self.log}")

    def stop(self) -> None:
        """Stop as planned; checks that it exits well and leaves nothing behind."""
        children = self.children
        self.process.send_signal(signal.SIGTERM)
        assert self.wait() == 0, self.log
        assert_gone(children)

    def kill(self) -> None:
        """Kill the process without notice; its engine processes notice by themselves."""
        children = self.children
        assert children
        self.process.kill()
        self.wait()
        assert_gone(children)


def assert_gone(processes: Iterable[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(list(processes), timeout=PATIENCE_SECONDS)
    assert alive == []


@dataclass
class Cluster:
    """A database, a Redis, a configuration, and the workers that share them."""

    folder: Path
    database: Database
    redis_url: str
    # The command for tests that need a new interpreter.
    program: tuple[str, ...] = ()
    started: list[WorkerProcess] = field(default_factory=list)

    def configure(
        self, name: str = "tidemill.toml", worker: Mapping[str, Any] | None = None, **model: Any
    ) -> Path:
        """A configuration with one fake model that does every task."""
        return self.configure_models({"fake": {**FAKE, **model}}, worker, name)

    def configure_models(
        self, models: Tables, worker: Mapping[str, Any] | None = None, name: str = "tidemill.toml"
    ) -> Path:
        return write_config(self.folder / name, models, worker)

    @property
    def database_url(self) -> str:
        return self.database.url.render_as_string(hide_password=False)

    @property
    def environment(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name == "TIDEMILL_CACHE" or not name.startswith(("TIDEMILL_", "CELERY_"))
        }
        return {
            **inherited,
            "TIDEMILL_DATABASE_URL": self.database_url,
            "TIDEMILL_REDIS_URL": self.redis_url,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def start_worker(self, *arguments: str, **environment: str) -> WorkerProcess:
        """Start a worker in the folder of the configuration, without waiting for it.

        It is forked, unless the test names a program.
        """
        name = f"worker{len(self.started)}@tests"
        log_path = self.folder / f"{name}.log"
        command = [
            *("-A", "tasks", "worker", "--loglevel", "INFO"),
            # These two options save time at the start; workers need not know each other.
            *("--without-gossip", "--without-mingle"),
            *("--hostname", name, *arguments),
        ]
        start = subprocess.Popen if self.program else ForkedProcess
        with log_path.open("wb") as log:
            process = start(
                [*(self.program or AS_STARTED), *command],
                cwd=self.folder,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        worker = WorkerProcess(process, name, log_path)
        self.started.append(worker)
        return worker

    @contextmanager
    def worker(
        self, *arguments: str, ready_seconds: float = PATIENCE_SECONDS, **environment: str
    ) -> Iterator[WorkerProcess]:
        """A ready worker; stopped as planned at the end unless the test has ended it."""
        worker = self.start_worker(*arguments, **environment)
        worker.wait_until_ready(ready_seconds)
        yield worker
        if worker.process.poll() is None:
            worker.stop()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder of the configuration, to its end."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )

    def tidemill(self, *arguments: str) -> Ended:
        """Run a `tidemill` command there, in this process."""
        return CommandLine(self.folder, self.environment)(*arguments)

    def celery(self, *arguments: str) -> str:
        """The output of a `celery -A tasks ...` command."""
        with ForkedProcess(
            [*MODULE, "celery", "-A", "tasks", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, out + err
        return str(out)

    def python(self, code: str) -> str:
        """The output of a Python process with our code and these settings."""
        done = self.run(sys.executable, "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout

    # --- the truth ---------------------------------------------------------------------------

    def states(self) -> dict[str, int]:
        return jobs.states(self.database)

    def results_per_job(self) -> dict[UUID, int]:
        return jobs.results_per_job(self.database)

    def job(self, job_id: UUID) -> Job:
        return jobs.job(self.database, job_id)

    def wait_for(self, state: JobState, num_jobs: int = 1) -> None:
        """Wait until so many jobs are in a state."""
        self._until(lambda: self.states().get(state, 0) >= num_jobs, f"{num_jobs} jobs {state}")

    def wait_until_finished(self, num_jobs: int) -> None:
        self._until(
            lambda: (
                sum(self.states().values()) == num_jobs and not UNFINISHED & self.states().keys()
            ),
            f"{num_jobs} finished jobs",
        )

    def _until(self, happened: Callable[[], Any], what: str) -> None:
        try:
            until(happened, what)
        except AssertionError as error:
            logs = "\n".join(worker.log[-4000:] for worker in self.started)
            raise AssertionError(f"{error}; {self.states()}\n{logs}") from None

    def end(self) -> None:
        """End all processes of this cluster, in any state."""
        for worker in self.started:
            if worker.process.poll() is None:
                children = worker.children
                worker.process.kill()
                worker.wait()
                psutil.wait_procs(children, timeout=PATIENCE_SECONDS)
