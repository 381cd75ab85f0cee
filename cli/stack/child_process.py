"""Child: a process of `tidemill up`, in its own process group, with its output in a file."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.stack import die_with_parent

TAIL_LINES = 15
MAX_LOG_BYTES = 10 * 2**20


def start(command: Sequence[str], **others: Any) -> "subprocess.Popen[bytes]":
    """Start a command that ends with this process. others: arguments of `subprocess.Popen`"""
    # -P: nothing in that script's folder can stand in for a module.
    whole = [sys.executable, "-P", die_with_parent.__file__, str(os.getpid()), *command]
    return subprocess.Popen(whole, **others)


class Child:
    """A process that is started once and stopped by a signal to its group."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        standard_input: str = "",
    ) -> None:
        if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_name(log.name + ".1"))
        self.log = log
        with log.open("ab") as to:
            self._log_start = to.tell()
            self._process = start(
                command,
                stdin=subprocess.PIPE,
                stdout=to,
                stderr=subprocess.STDOUT,
                env={**environment},
                # Ctrl-C in a terminal goes to everyone in the foreground group;
                # the order of stopping is the parent's to decide.
                start_new_session=True,
            )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(standard_input.encode())
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended, and its log says why

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, which passes it on to its children."""
        if self.status is None:
            self._process.send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Wait for the process. Returns whether it ended in time."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """Kill the process and the rest of its group."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self._process.wait()

    def new_output(self, since: int) -> bytes:
        """The output since a position in this run's log."""
        with self.log.open("rb") as log:
            log.seek(self._log_start + since)
            return log.read()

    def last_lines(self) -> str:
        """The last lines that it wrote in this run."""
        lines = self.new_output(0).decode(errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-TAIL_LINES:])
