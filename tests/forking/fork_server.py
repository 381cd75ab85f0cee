"""The fork servers: `python -P -m tests.forking.fork_server KIND FD` imports the modules of a kind
of program, and then forks a process for each request.

A worker takes over a second of CPU to start and an engine with a model four, most of it for
imports, and the tests start hundreds. A fork runs the same module with arguments, a folder, an
environment and open files of its own, as `python -P -m MODULE` does: its own process, with signals,
children and an exit status. Before the fork no setting is read, no thread runs and no connection is
open. If an import has read a variable that differs in the fork, the fork becomes a new interpreter.

The tests start one server, of workers, which passes on requests for programs with a model to a
server of engines. A forked worker may send it requests, too: its engines are forked as well.
"""

import fcntl
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module, reload
from pathlib import Path
from typing import Any

MAX_REQUEST_BYTES = 1 << 17
MAX_DESCRIPTORS = 8
ABOVE = 500  # above any descriptor that a program may request
NUMBER = struct.Struct("i")  # a process id, or an exit status


def read_failpoint_again() -> None:
    reload(sys.modules["worker.failpoints"])


def read_num_threads_again() -> None:
    number = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    sys.modules["torch"].set_num_threads(number)


def read_by_none_of_ours() -> None:
    """Libraries set these variables in any process that imports them, so they differ after a test's
    imports; but no program here compiles with torch or runs Intel's OpenMP."""


def read_by_screens() -> None:
    """Screens are opened anew, whatever these variables are; see `open_streams`."""


@dataclass(frozen=True)
class Kind:
    """The imports of a server, and the fixes that a fork needs after them."""

    # Not the program itself, since runpy warns if it is already imported.
    modules: tuple[str, ...]
    # Variables that imports read, and the functions that read them again.
    read_again: Mapping[str, Callable[[], None]]
    # Prefixes of variables that are read outside of Python.
    native: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


KINDS = {
    "worker": Kind(
        modules=(
            "cli.main",
            "cli.stack",
            "celery.app.control",
            "celery.app.utils",
            "celery.backends.base",
            "celery.bin.worker",
            "celery.worker.components",
            "engine.backends.fake",
            "engine.process",
            "kombu.transport.redis",
            "sqlalchemy.dialects.postgresql.psycopg",
            "sqlalchemy.dialects.sqlite",
            "tests.forking.forked_children",
            "worker.celery.consumer",
            "worker.celery.logging",
            "worker.celery.pool",
            "worker.celery.run_jobs",
        ),
        read_again={
            "TIDEMILL_FAIL_AT": read_failpoint_again,
            **dict.fromkeys(("COLUMNS", "LINES", "NO_COLOR", "TERM"), read_by_screens),
        },
        native=("LANG", "LC_"),
    ),
    "engine": Kind(
        modules=(
            "engine.process",
            "engine.backends.ctranslate2",
            "engine.backends.loader",
            "engine.cpu.fused.fused_step",
            "engine.kv_cache.planning.free_memory",
            *(
                f"transformers.models.{name}"
                for name in (
                    "bart.modeling_bart",
                    "gpt2.modeling_gpt2",
                    "gpt2.tokenization_gpt2",
                    "llama.modeling_llama",
                    "m2m_100.modeling_m2m_100",
                    "marian.modeling_marian",
                    "t5.modeling_t5",
                )
            ),
        ),
        read_again={
            "OMP_NUM_THREADS": read_num_threads_again,
            **dict.fromkeys(("KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR"), read_by_none_of_ours),
        },
        native=("CUDA_", "GOMP_", "KMP_", "LD_", "MALLOC_", "MKL_", "OMP_", "OPENBLAS_", "TORCH_"),
        # Only the forking thread may run.
        environment={"OMP_NUM_THREADS": "1"},
    ),
}


@dataclass(frozen=True)
class Program:
    """A module to run, with its arguments, folder and environment."""

    module: str
    arguments: tuple[str, ...]
    folder: str
    environment: dict[str, str]
    name: str  # of the process, if it is not the interpreter's
    starts_session: bool

    def run(self, imported: "Imported") -> None:
        """Run the module as `python -P -m` does, and exit with its status."""
        if self.name:
            Path("/proc/self/comm").write_text(self.name)
        if self.starts_session:
            os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(self.folder)
        others = imported.others(self.environment)
        if not others <= imported.kind.read_again.keys():
            command = [sys.executable, "-P", "-m", self.module, *self.arguments]
            os.execve(sys.executable, command, self.environment)
        os.environ.clear()
        os.environ.update(self.environment)
        time.tzset()
        for variable in others:
            imported.kind.read_again[variable]()
        sys.argv[1:] = self.arguments
        open_streams()
        gc.enable()
        runpy.run_module(self.module, run_name="__main__", alter_sys=True)


def open_streams() -> None:
    """Open the standard streams as a new interpreter does, and the screens on them as their import
    does."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        before = getattr(sys, name)
        stream = open(number, mode, encoding=before.encoding, errors=before.errors, closefd=False)  # noqa: SIM115
        stream.reconfigure(line_buffering=number == 2 or stream.isatty())
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if terminal := sys.modules.get("cli.output.terminal"):
        terminal.out.__init__()
        terminal.err.__init__(stderr=True)


@dataclass(frozen=True)
class Imported:
    """The environment variables that the imports have read, including an interpreter's own."""

    kind: Kind
    names: set[str]
    environment: dict[str, str]

    def others(self, environment: Mapping[str, str]) -> set[str]:
        """The variables that differ in another environment."""
        names = self.names | {
            name
            for name in {**self.environment, **environment}
            if name.startswith(("PYTHON", *self.kind.native))
        }
        return {name for name in names if environment.get(name) != self.environment.get(name)}


def import_all(kind: Kind) -> Imported:
    """Import the modules of this kind of program, and none that reads a setting."""
    gc.disable()
    imported = Imported(kind, set(), dict(os.environ))
    with recording(imported.names):
        for module in kind.modules:
            import_module(module)
    assert "tasks.celeryconfig" not in sys.modules, "the settings were read before the fork"
    assert threading.active_count() == len(os.listdir("/proc/self/task")) == 1
    gc.freeze()
    return imported


@contextmanager
def recording(names: set[str]) -> Iterator[None]:
    """Record the name of every variable that is read, by any method."""
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
    """A forked process; the pipe tells the client its id and its exit status."""

    pid: int
    pidfd: int
    pipe: int
    ends_with_parent: bool  # gets SIGTERM when its client has died

    def bury(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        tell(self.pipe, os.waitstatus_to_exitcode(status))
        self.close()

    def close(self) -> None:
        os.close(self.pidfd)
        os.close(self.pipe)


def tell(pipe: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the client has died, and its forks notice that
        os.write(pipe, NUMBER.pack(number))


def start(
    kind: str, environment: Mapping[str, str]
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """A server, and the client's end of its socket; the server ends when that is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.forking.fork_server", kind, str(theirs.fileno())],
            env={**environment, **KINDS[kind].environment},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    return ours, process


def move(descriptors: Mapping[int, int]) -> None:
    """Give each descriptor another number, replacing any that is open."""
    above = {number: fcntl.fcntl(fd, fcntl.F_DUPFD, ABOVE) for number, fd in descriptors.items()}
    for fd in descriptors.values():
        os.close(fd)
    for number, fd in above.items():
        os.dup2(fd, number)
        os.close(fd)


@dataclass
class Server:
    """Forks for each request until no client is left.

    A request carries standard input, output and error, the pipe, and the program's other open
    files, under the numbers that it names.
    """

    requests: socket.socket
    requests_of_forks: socket.socket
    forks: dict[int, Fork] = field(default_factory=dict)  # by their pidfds
    engines: tuple[socket.socket, subprocess.Popen[bytes]] | None = None

    def serve(self) -> Program | None:
        """The program to run, in a fork; None in the server, at its end."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.requests, selectors.EVENT_READ)
            selector.register(self.requests_of_forks, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fd in self.forks:
                        selector.unregister(key.fd)
                        fork = self.forks.pop(key.fd)
                        if fork.ends_with_parent:
                            with suppress(KeyError):
                                selector.unregister(fork.pipe)
                        fork.bury()
                        continue
                    if isinstance(key.data, Fork):  # its pipe has no reader any more
                        if self.forks.get(key.data.pidfd) is key.data:
                            selector.unregister(key.fd)
                            signal.pidfd_send_signal(key.data.pidfd, signal.SIGTERM)
                        continue
                    assert isinstance(key.fileobj, socket.socket)
                    request, descriptors, _, _ = socket.recv_fds(
                        key.fileobj, MAX_REQUEST_BYTES, MAX_DESCRIPTORS
                    )
                    if not request:
                        self.end()
                        return None
                    made = self.answer(json.loads(request), descriptors)
                    if isinstance(made, Program):
                        return made
                    if made is not None:
                        self.forks[made.pidfd] = made
                        selector.register(made.pidfd, selectors.EVENT_READ)
                        if made.ends_with_parent:
                            selector.register(made.pipe, selectors.EVENT_READ, made)

    def answer(self, request: dict[str, Any], descriptors: list[int]) -> Fork | Program | None:
        """The fork; in the fork, its program; None if another server has the request."""
        if request.pop("needs_model"):
            hand_on = {**request, "needs_model": False}
            socket.send_fds(self.engine_server(), [json.dumps(hand_on).encode()], descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            return None
        *streams, pipe = descriptors[:4]
        numbers = [0, 1, 2, *request.pop("descriptors")]
        ends_with_parent = request.pop("ends_with_parent")
        open_there = dict(zip(numbers, [*streams, *descriptors[4:]], strict=True))
        pid = os.fork()
        if pid == 0:
            self.leave()
            os.close(pipe)
            move(open_there)
            return Program(**request)
        for descriptor in open_there.values():
            os.close(descriptor)
        tell(pipe, pid)
        return Fork(pid, os.pidfd_open(pid), pipe, ends_with_parent)

    def engine_server(self) -> socket.socket:
        if self.engines is None:
            self.engines = start("engine", os.environ)
        return self.engines[0]

    def leave(self) -> None:
        """Close the server's files, in a fork."""
        for fork in self.forks.values():
            fork.close()
        self.requests.close()
        self.requests_of_forks.close()
        if self.engines is not None:
            self.engines[0].close()

    def end(self) -> None:
        """End all processes when the tests have ended."""
        for fork in self.forks.values():
            os.kill(fork.pid, signal.SIGKILL)
            fork.bury()
        if self.engines is not None:
            self.engines[0].close()
            self.engines[1].wait()


def main(kind: str, fd: int) -> None:
    from tests.forking import forked

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the tests
    imported = import_all(KINDS[kind])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours = socket.socket(fileno=fcntl.fcntl(ours.detach(), fcntl.F_DUPFD_CLOEXEC, ABOVE))
    program = Server(socket.socket(fileno=fd), theirs).serve()
    if program is not None:
        forked.ask_at(ours)
        program.run(imported)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
