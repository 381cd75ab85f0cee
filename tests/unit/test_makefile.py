"""`make` announces its installations, and shows their progress on a terminal."""

import os
import pty
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Creates an environment whose programs are this script, and prints its arguments.
PYTHON = """#!/bin/sh
echo "$(basename "$0") $*"
test "$2" = venv && mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
for name in tidemill ruff mypy lint-imports; do
    test "$2" = venv && cp "$0" "$3/bin/$name"
done
exit 0
"""


def make(folder: Path, goal: str, stdout: int) -> "subprocess.Popen[bytes]":
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.Popen(
        ["make", goal, f"VENV={folder}/venv", f"PYTHON={folder}/python"],
        cwd=ROOT,
        env=own,
        stdout=stdout,
        stderr=subprocess.STDOUT,
    )


def lines_in_a_pipe(folder: Path, goal: str) -> list[str]:
    out, _ = make(folder, goal, subprocess.PIPE).communicate(timeout=60)
    return out.decode().splitlines()


def lines_on_a_terminal(folder: Path, goal: str) -> list[str]:
    ours, theirs = pty.openpty()
    process = make(folder, goal, theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # the terminal has no other end
        pass
    os.close(ours)
    process.wait(60)
    return shown.decode().splitlines()


@pytest.mark.parametrize(("goal", "num_installs"), [("demo", 2), ("check", 3)])
def test_every_install_is_announced_and_is_done_once(
    tmp_path: Path, goal: str, num_installs: int
) -> None:
    lines, again = lines_in_a_pipe(tmp_path, goal), lines_in_a_pipe(tmp_path, goal)

    installs = [number for number, line in enumerate(lines) if "-m pip install" in line]
    assert len(installs) == num_installs
    assert all(lines[number - 1].startswith("Installing") for number in installs)
    # The first look at the interpreter takes no time; making the environment takes seconds.
    assert "Installing" in lines[1]
    assert "-m venv" in lines[2]
    assert not any("-m pip" in line or line.startswith("Installing") for line in again)


def test_pip_shows_how_far_it_is_at_a_terminal_and_is_quiet_in_a_log(tmp_path: Path) -> None:
    seen, logged = tmp_path / "seen", tmp_path / "logged"
    for folder in (seen, logged):
        folder.mkdir()
    for lines, is_quiet in (
        (lines_on_a_terminal(seen, "demo"), False),
        (lines_in_a_pipe(logged, "demo"), True),
    ):
        installs = [line for line in lines if "-m pip install" in line]
        assert len(installs) == 2
        assert all(("--quiet" in line) == is_quiet for line in installs)
