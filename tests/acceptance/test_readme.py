"""The README's examples do what they say, in a folder where `tidemill up` runs."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.commands.start.up import EXAMPLES
from examples.world.stories import is_well_told
from tasks.configuration.catalog import Catalog
from tests.forking.forked import MODULE, ForkedProcess, server
from tests.running.workers import PATIENCE_SECONDS

ANSWERS = {
    "summarize": "The Lucky Tern brought twelve sacks of oats to Eelgate on Saturday. "
    "Captain Nora Flint sails again at dusk.",
    "translate": "Le meunier ouvre le portail.",
    "chat": "Ada Finch keeps the lighthouse at Saltmere.",
}
ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "tests" / "forking" / "fork_client.py"
README = (ROOT / "README.md").read_text()
GREETING = "greeting.txt"  # what `up` printed


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    """What the README tells people to type and the answer it shows, but for what this test is
    itself a part of."""
    typed: list[tuple[str, str]] = []
    for block in blocks("console"):
        for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, answer = command.partition("\n")
            typed.append((line, answer.strip()))
    assert [line for line, _ in typed[:3]] == ["make demo", "make test", ".venv/bin/tidemill up"]
    return typed[3:]


def answer_of(program: str) -> str:
    """The comment of whole lines at the end of a program: what it prints last."""
    lines = re.findall(r"^# (.*)$", program, flags=re.MULTILINE)
    return " ".join(lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder like a checkout, with everything up."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("tidemill.toml", "examples"):
        (folder / name).symlink_to(ROOT / name)
    program = folder / ".venv" / "bin" / "tidemill"
    program.parent.mkdir(parents=True)
    # A fork where a test has said of whom.
    program.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={ROOT}\n"
        f'[ "$FORKS" ] && exec {sys.executable} -I -S {CLIENT} "$FORKS" cli "$@"\n'
        f'exec {sys.executable} -m cli "$@"\n'
    )
    program.chmod(0o755)
    greeting: list[str] = []
    with ForkedProcess(
        [*MODULE, "cli", "up"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as up:
        try:
            assert up.stdout is not None
            for line in up.stdout:  # ends when `up` does
                greeting.append(line)
                if "Ctrl-C stops" in line:
                    break
            (folder / GREETING).write_text("".join(greeting))
            assert up.poll() is None, "`tidemill up` ended"
            yield folder
        finally:
            up.send_signal(signal.SIGTERM)
            up.communicate(timeout=PATIENCE_SECONDS)
    assert up.returncode == 0


def run(folder: Path, command: str | list[str]) -> str:
    addresses = json.loads((folder / ".tidemill" / "run.json").read_text())
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TIDEMILL_REDIS_URL": addresses["redis_url"],
        "FORKS": str(server().fileno()),
    }
    ran = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        shell=isinstance(command, str),
        capture_output=True,
        text=True,
        timeout=120,
        pass_fds=[server().fileno()],
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize(("command", "answer"), commands())
def test_a_command_of_the_readme_works(folder: Path, command: str, answer: str) -> None:
    printed = run(folder, command).strip()
    assert printed
    assert answer in ("", printed)


def test_the_first_examples_have_answers() -> None:
    answered = [line for line, answer in commands() if answer]
    assert sum("submit translate" in line for line in answered) >= 2
    assert all(answer for line, answer in commands() if re.search(r"submit \w+ \"", line))


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_a_program_of_the_readme_works(folder: Path, number: int) -> None:
    program = blocks("python")[number]
    printed = run(folder, [sys.executable, "-c", program]).strip()
    assert printed
    assert printed.endswith(answer_of(program))


def test_the_celery_programs_text_is_summarized_right(folder: Path) -> None:
    [program] = [block for block in blocks("python") if "send_task" in block]
    waiting = """
import time, uuid
from db import find_job
from tasks.submit import SubmittedJob
sent_id = uuid.UUID(sent.id)
while find_job(sent_id) is None:  # until the message is taken from the queue
    time.sleep(0.1)
print(SubmittedJob(sent_id, is_new=False).wait(timeout_seconds=60).output)
"""
    printed = run(folder, [sys.executable, "-c", program + waiting]).splitlines()
    assert printed[1] == (
        "Carter Nora Flint fetched twelve sacks of rye at the mill of Larkness on Monday. "
        "The wheel stopped at dusk because of low water."
    )


def test_the_command_that_up_suggests_is_answered(folder: Path) -> None:
    greeting = (folder / GREETING).read_text()
    [command] = re.findall(r"^  tidemill (submit .* --wait)$", greeting, flags=re.MULTILINE)
    assert run(folder, f".venv/bin/tidemill {command}").strip() == ANSWERS["summarize"]


@pytest.mark.parametrize("task", sorted(EXAMPLES))
def test_the_example_of_every_task_is_answered_right(folder: Path, task: str) -> None:
    languages = " --source-language en --target-language fr" if task == "translate" else ""
    command = f'.venv/bin/tidemill submit {task} "{EXAMPLES[task]}"{languages} --wait'
    answer = run(folder, command).strip()
    if task == "generate":
        assert is_well_told(EXAMPLES[task] + " " + answer)
    else:
        assert answer == ANSWERS[task]


@pytest.mark.parametrize("block", blocks("toml"))
def test_a_configuration_of_the_readme_is_valid(tmp_path: Path, block: str) -> None:
    (tmp_path / "tidemill.toml").write_text(block)
    assert Catalog.load(tmp_path / "tidemill.toml").models


def test_the_example_configuration_is_valid() -> None:
    catalog = Catalog.load(ROOT / "examples" / "tidemill.toml")
    assert {"facebook/bart-large-cnn", "Helsinki-NLP/opus-mt-en-de"} <= {
        model.checkpoint for model in catalog.models.values()
    }
    assert catalog.route("translate", None, "en", "de").alias == "opus-en-de"
    assert catalog.route("translate", None, "fr", "uk").alias == "nllb"
