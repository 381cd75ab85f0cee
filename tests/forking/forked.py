"""A forked process, with the interface of `subprocess.Popen`, whose parent is a fork server."""

import atexit
import json
import os
import select
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.forking import fork_server
from tests.forking.fork_server import NUMBER

ROOT = Path(__file__).parents[2]
# The beginning of a command that can be forked; a module and its arguments follow.
MODULE = (sys.executable, "-P", "-m")

_lock = threading.Lock()
_server: socket.socket | None = None
_pid: int | None = None


def server() -> socket.socket:
    """Start the fork server of these tests, which ends with them."""
    global _pid
    with _lock:
        if _server is None:
            inherited = {
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("TIDEMILL_", "CELERY_", "PYTEST_"))
            }
            ours, process = fork_server.start("worker", {**inherited, "PYTHONPATH": str(ROOT)})

            def end() -> None:
                ours.close()
                process.wait()

            atexit.register(end)
            ask_at(ours)
            _pid = process.pid
        assert _server is not None
        return _server


def ask_at(requests: socket.socket) -> None:
    """Use a running server."""
    global _server
    _server = requests


def forks_named(name: str) -> list[psutil.Process]:
    """The processes of this name that were forked for these tests or for one of their forks."""
    if _pid is None:
        return []
    return [fork for fork in psutil.Process(_pid).children(recursive=True) if named(fork) == name]


def named(process: psutil.Process) -> str | None:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return None


def is_module(command: Sequence[str]) -> bool:
    """Whether the command can be forked."""
    return tuple(command[: len(MODULE)]) == MODULE


class ForkedProcess(subprocess.Popen[Any]):
    """`python -P -m MODULE ...` in a process of its own; its parent is the fork server."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        needs_model: bool = False,
        name: str = "",
        ends_with_parent: bool = False,
        **arguments: Any,
    ) -> None:
        """name: of the process, if it is not the interpreter's"""
        assert is_module(command)
        self._request = {
            "needs_model": needs_model,
            "name": name,
            "ends_with_parent": ends_with_parent,
            "starts_session": arguments.get("start_new_session", False),
        }
        super().__init__(command, **arguments)

    def _execute_child(  # type: ignore[no-untyped-def]
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo,
        creationflags, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *others,
    ) -> None:  # fmt: skip
        """Like Popen's; -1 is a stream that the process inherits from this one."""
        request = {
            **self._request,
            "module": args[len(MODULE)],
            "arguments": args[len(MODULE) + 1 :],
            "folder": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "descriptors": list(pass_fds),
        }
        streams = [
            number if stream == -1 else stream
            for number, stream in enumerate((p2cread, c2pwrite, errwrite))
        ]
        reading, writing = os.pipe()
        weakref.finalize(self, os.close, reading)
        socket.send_fds(server(), [json.dumps(request).encode()], [*streams, writing, *pass_fds])
        os.close(writing)
        self._pipe = reading
        self.pid = self._number()
        self._child_created = True
        self._close_pipe_fds(  # type: ignore[attr-defined]
            p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite
        )

    def _number(self) -> int:
        said = os.read(self._pipe, NUMBER.size)
        assert said, "the fork server has ended"
        number: int = NUMBER.unpack(said)[0]
        return number

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        return self._ended_within(0)

    def _wait(self, timeout: float | None) -> int:
        if self._ended_within(timeout) is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        assert self.returncode is not None
        return self.returncode

    def _ended_within(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._pipe], [], [], seconds)[0]:
            with self._waitpid_lock:  # type: ignore[attr-defined]
                if self.returncode is None:
                    self.returncode = self._number()
        return self.returncode
