"""The `tidemill` command in a folder of its own: as a process, or within this one."""

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from tasks.configuration import settings

ROOT = Path(__file__).parents[1]
CONFIG = """
[models.parrot]
checkpoint = "fake"
engine = "fake"
tasks = ["summarize", "translate", "generate", "chat"]
languages = ["en>fr"]

[models.terse]
checkpoint = "fake"
engine = "fake"
tasks = ["generate"]
max_input_tokens = 3
"""


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class CommandLine:
    """Runs commands in a folder of their own; as installed, they look for no modules there."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def whole_environment(self) -> dict[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("TIDEMILL_")
        }
        return {**inherited, "PYTHONPATH": str(ROOT), **self.environment}

    def __call__(self, *arguments: str, given: str | None = None) -> Ended:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "cli", *arguments],
            cwd=self.folder,
            env=self.whole_environment,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",  # a test may send bytes that are no text
            timeout=120,
        )
        assert "Traceback" not in ended.stderr
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "cli", *arguments],
            cwd=self.folder,
            env=self.whole_environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def write(self, name: str, *rows: dict[str, Any] | str) -> Path:
        path = self.folder / name
        path.write_text(
            "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        )
        return path


@dataclass
class InProcess:
    """The same without the second that a process takes to start.

    Not for what publishes: the Celery app of this process has settings of its own.
    """

    process: CommandLine
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    @property
    def folder(self) -> Path:
        return self.process.folder

    def write(self, name: str, *rows: dict[str, Any] | str) -> Path:
        return self.process.write(name, *rows)

    def __call__(self, *arguments: str, given: str = "") -> Ended:
        self.capsys.readouterr()
        with self.monkeypatch.context() as patched:
            patched.chdir(self.folder)
            for name, value in self.process.environment.items():
                patched.setenv(name, value)
            patched.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
            try:
                status = main(arguments)
            finally:
                settings.database().close()
                settings.database.cache_clear()
                settings.catalog.cache_clear()
        captured = self.capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ended(status, captured.out, captured.err)


def ids(ended: Ended) -> list[str]:
    return [json.loads(line)["custom_id"] for line in ended.out.splitlines()]
