"""Questions that a command asks at a terminal, and replies that it does not accept."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from contextlib import suppress

import pytest

from tests.running.commands import CommandLine

CTRL_C, CTRL_D = "\x03", "\x04"
ERASE = ("erase", "--tenant", "acme", "--json")
SUBMIT = ("submit", "generate", "nosuch.txt")


def take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Background processes of a shell ignore SIGINT.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def on_a_terminal(command: CommandLine, key: str, *arguments: str) -> tuple[int, str, str]:
    """Run a command at a terminal that it is the foreground of, and press keys once it asks.

    Returns its status, what is on the terminal, and its standard output, which is a pipe.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "cli", *arguments],
        cwd=command.folder,
        env={**command.whole_environment, "TERM": "dumb"},
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(theirs)
    shown = b""
    while b"]: " not in shown:
        shown += os.read(ours, 4096)
    for _ in range(12):
        os.write(ours, key.encode())
        # Python misses an interrupt just before it waits for a line; a user would press again.
        with suppress(subprocess.TimeoutExpired):
            out, _ = process.communicate(timeout=60 if key != CTRL_C else 5)
            break
    else:
        process.kill()
        pytest.fail(f"it goes on after {key!r}: {shown!r}")
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # the terminal has no other end
        pass
    os.close(ours)
    return process.returncode, shown.decode(), out


@pytest.mark.parametrize("arguments", [ERASE, SUBMIT])
def test_an_interrupt_at_a_question_ends_like_any_other(
    stored: CommandLine, arguments: tuple[str, ...]
) -> None:
    status, shown, out = on_a_terminal(stored, CTRL_C, *arguments)

    assert (status, out) == (130, ""), shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(("keys", "status"), [(CTRL_D, 1), ("\n", 1), ("what\ny\n", 0)])
def test_only_yes_erases_and_the_answer_of_a_program_is_json_alone(
    stored: CommandLine, keys: str, status: int
) -> None:
    ended, shown, out = on_a_terminal(stored, keys, *ERASE)

    assert ended == status, shown
    assert "would be erased" in shown
    assert "Traceback" not in shown
    assert ("Please answer y or n" in shown) == ("what" in keys)
    assert out == "" if status else out.startswith("{")
