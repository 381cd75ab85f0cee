"""The fork server: `python -P -m tests.fork_server FD` has imported what a worker imports, and
forks for each that a test asks for.

A worker takes over a second of CPU to start, most of it for its imports, and the tests start
hundreds. A fork runs the same module with arguments, a folder, an environment and open files of
its own, as `python -P -m MODULE` does: its own process, with signals, children and an exit status.
Before the fork no setting is read, no thread runs and no connection is open. Where an import has
read a variable that is another in the fork, the fork becomes a new interpreter.
"""

import gc
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, reload
from typing import Any

# Not the program itself, for runpy warns of one that has been imported.
MODULES = (
    "cli.stack",
    "celery.app.control",
    "celery.app.utils",
    "celery.backends.base",
    "celery.bin.worker",
    "celery.worker.components",
    "kombu.transport.redis",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
    "worker.celery.consumer",
    "worker.celery.logging",
    "worker.celery.pool",
    "worker.celery.run_jobs",
)
# Modules that keep what they read of the environment, and can read it again.
READ_AGAIN = {"TIDEMILL_FAIL_AT": "worker.failpoints"}
MAX_REQUEST_BYTES = 1 << 17
NUMBER = struct.Struct("i")  # a process id, or an exit status


@dataclass(frozen=True)
class Program:
    """A module to run, with its arguments, folder and environment."""

    module: str
    arguments: tuple[str, ...]
    folder: str
    environment: dict[str, str]

    def run(self, imported: "Imported") -> None:
        """Run the module as `python -P -m` does, and end as it does."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(self.folder)
        others = imported.others(self.environment)
        if not others <= READ_AGAIN.keys():
            command = [sys.executable, "-P", "-m", self.module, *self.arguments]
            os.execve(sys.executable, command, self.environment)
        os.environ.clear()
        os.environ.update(self.environment)
        time.tzset()
        for variable in others:
            reload(sys.modules[READ_AGAIN[variable]])
        sys.argv[1:] = self.arguments
        gc.enable()
        runpy.run_module(self.module, run_name="__main__", alter_sys=True)


@dataclass(frozen=True)
class Imported:
    """What the imports have read of the environment, an interpreter's own variables included."""

    names: set[str]
    environment: dict[str, str]

    def others(self, environment: Mapping[str, str]) -> set[str]:
        """Those that are not the same in another environment."""
        names = self.names | {
            name for name in {**self.environment, **environment} if name.startswith("PYTHON")
        }
        return {name for name in names if environment.get(name) != self.environment.get(name)}


def import_all() -> Imported:
    """Import what a worker does, and nothing that reads a setting."""
    gc.disable()
    imported = Imported(set(), dict(os.environ))
    with recording(imported.names):
        for module in MODULES:
            import_module(module)
    assert "tasks.celeryconfig" not in sys.modules, "the settings were read before the fork"
    assert threading.active_count() == 1
    gc.freeze()
    return imported


@contextmanager
def recording(names: set[str]) -> Iterator[None]:
    """Keep the name of every variable that somebody looks up, whichever way."""
    environ: Any = type(os.environ)
    look_up = environ.__getitem__

    def recorded(self: Any, name: Any) -> Any:
        names.add(name)
        return look_up(self, name)

    environ.__getitem__ = recorded
    try:
        yield
    finally:
        environ.__getitem__ = look_up


@dataclass(frozen=True)
class Fork:
    """A process of the server's; the pipe tells the tests its id, and how it ended."""

    pid: int
    pidfd: int
    pipe: int

    def bury(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        os.write(self.pipe, NUMBER.pack(os.waitstatus_to_exitcode(status)))
        self.close()

    def close(self) -> None:
        os.close(self.pidfd)
        os.close(self.pipe)


def serve(requests: socket.socket) -> Program | None:
    """Fork for each request until nobody is left to ask: None then, and in a fork what it runs.

    A request brings standard input, output and error, and the pipe.
    """
    forks: dict[int, Fork] = {}  # by their pidfds
    with requests, selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd in forks:
                    selector.unregister(key.fd)
                    forks.pop(key.fd).bury()
                    continue
                request, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 4)
                if not request:
                    end(forks.values())
                    return None
                *streams, pipe = descriptors
                pid = os.fork()
                if pid == 0:
                    for each in forks.values():
                        each.close()
                    for number, stream in enumerate(streams):
                        os.dup2(stream, number)
                    for descriptor in descriptors:
                        os.close(descriptor)
                    return Program(**json.loads(request))
                for stream in streams:
                    os.close(stream)
                os.write(pipe, NUMBER.pack(pid))
                fork = Fork(pid, os.pidfd_open(pid), pipe)
                forks[fork.pidfd] = fork
                selector.register(fork.pidfd, selectors.EVENT_READ)


def end(forks: Iterable[Fork]) -> None:
    """Leave nothing running when the tests have ended."""
    for fork in forks:
        os.kill(fork.pid, signal.SIGKILL)
        fork.bury()


def main(fd: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is for the tests
    imported = import_all()
    program = serve(socket.socket(fileno=fd))
    if program is not None:
        program.run(imported)


if __name__ == "__main__":
    main(int(sys.argv[1]))
