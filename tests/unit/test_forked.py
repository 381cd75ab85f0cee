"""A fork ends as a program that was started would, and is a new interpreter where it must be."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.fork_server import Imported
from tests.forked import ROOT, ForkedProcess

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def forked(folder: Path, *command: str, **variables: str) -> tuple[ForkedProcess, Path]:
    log_path = folder / "log"
    with log_path.open("wb") as log:
        return ForkedProcess(command, folder, {**ENVIRONMENT, **variables}, log), log_path


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [(["base64", "-t"], 0, "Aladdin"), (["json.tool"], 1, "Expecting value")],
)
def test_the_exit_status_and_the_output_are_the_modules(
    command: list[str], status: int, said: str, tmp_path: Path
) -> None:
    process, log = forked(tmp_path, *command)
    assert process.wait(60) == process.poll() == status
    assert said in log.read_text()


def test_a_signal_is_the_modules(tmp_path: Path) -> None:
    process, _ = forked(tmp_path, "http.server", "--bind", "127.0.0.1", "0")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM


def test_another_path_is_a_new_interpreters(tmp_path: Path) -> None:
    process, log = forked(tmp_path, "site", PYTHONPATH=f"{ROOT}:/elsewhere")
    assert process.wait(60) == 0
    assert "/elsewhere" in log.read_text()


def test_what_an_import_has_read_must_be_the_same() -> None:
    imported = Imported({"READ", "ABSENT"}, {"READ": "one", "UNREAD": "one"})
    assert imported.others({"READ": "one", "UNREAD": "two"}) == set()
    assert imported.others({"READ": "two"}) == {"READ"}
    assert imported.others({}) == {"READ"}
    added = {"READ": "one", "ABSENT": "", "PYTHONPATH": "somewhere"}
    assert imported.others(added) == {"ABSENT", "PYTHONPATH"}
