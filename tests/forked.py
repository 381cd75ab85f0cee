"""A forked process: what `subprocess.Popen` is, of a program that the fork server forks."""

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.fork_server import NUMBER

ROOT = Path(__file__).parent.parent


@functools.cache
def server() -> socket.socket:
    """Starts the fork server of these tests, which ends with them."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TIDEMILL_", "CELERY_"))
    }
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.fork_server", str(theirs.fileno())],
            env={**inherited, "PYTHONPATH": str(ROOT)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


class ForkedProcess:
    """A module with its arguments, as `python -P -m` runs it, in a process of its own."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        output: IO[bytes],
    ) -> None:
        self.args = list(command)
        self.returncode: int | None = None
        request = {
            "module": command[0],
            "arguments": list(command[1:]),
            "folder": str(folder),
            "environment": dict(environment),
        }
        reading, writing = os.pipe()
        with open(os.devnull, "rb") as nothing:
            socket.send_fds(
                server(),
                [json.dumps(request).encode()],
                [nothing.fileno(), output.fileno(), output.fileno(), writing],
            )
        os.close(writing)
        weakref.finalize(self, os.close, reading)
        self._pipe = reading
        self._lock = threading.Lock()
        self.pid = self._number()

    def _number(self) -> int:
        said = os.read(self._pipe, NUMBER.size)
        assert said, "the fork server has ended"
        number: int = NUMBER.unpack(said)[0]
        return number

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._wait(timeout)
        if status is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return status

    def _wait(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._pipe], [], [], seconds)[0]:
            with self._lock:
                if self.returncode is None:
                    self.returncode = self._number()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
