"""The README's examples do what they say, in a folder where `tidemill up` runs."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.catalog import Catalog
from tests.workers import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """What the README tells people to type, but for what this test is itself a part of."""
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    typed = [line.removeprefix("$ ") for line in lines]
    assert typed[:2] == ["make demo", "make test"]
    assert typed[2] == ".venv/bin/tidemill up"
    return typed[3:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder like a checkout, with everything up."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("tidemill.toml", "examples"):
        (folder / name).symlink_to(ROOT / name)
    program = folder / ".venv" / "bin" / "tidemill"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m cli "$@"\n')
    program.chmod(0o755)
    with subprocess.Popen(
        [program, "up"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as up:
        try:
            assert up.stdout is not None
            for line in up.stdout:  # ends when `up` does
                if (folder / ".tidemill" / "run.json").exists():
                    break
                assert line is not None
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
    }
    ran = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        shell=isinstance(command, str),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_works(folder: Path, command: str) -> None:
    assert run(folder, command).strip()


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_a_program_of_the_readme_works(folder: Path, number: int) -> None:
    assert run(folder, [sys.executable, "-c", blocks("python")[number]]).strip()


@pytest.mark.parametrize("block", blocks("toml"))
def test_a_configuration_of_the_readme_is_one(tmp_path: Path, block: str) -> None:
    (tmp_path / "tidemill.toml").write_text(block)
    assert Catalog.load(tmp_path / "tidemill.toml").models


def test_the_example_configuration_is_one() -> None:
    catalog = Catalog.load(ROOT / "examples" / "tidemill.toml")
    assert {"facebook/bart-large-cnn", "Helsinki-NLP/opus-mt-en-de"} <= {
        model.checkpoint for model in catalog.models.values()
    }
    assert catalog.route("translate", None, "en", "de").alias == "opus-en-de"
    assert catalog.route("translate", None, "fr", "uk").alias == "nllb"


def test_the_configuration_tables_name_what_there_is() -> None:
    from tasks.catalog import Model
    from worker.settings import Settings

    named = set(re.findall(r"`([a-z_]+)`", README))
    settings = set(Settings.__dataclass_fields__) - {"claim_seconds", "dispatch_seconds"}
    fields = {name for name in Model.model_fields if not name.startswith("fake_")} - {"alias"}
    assert fields <= named
    assert settings <= named
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] in README
