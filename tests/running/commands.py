"""The `tidemill` command in a folder of its own: in this process, or in a new one."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIG_DFL, SIGINT
from typing import Any

from cli.main import main
from tasks.configuration import settings
from tasks.errors import SettingsError
from tests.forking.forked import MODULE, ForkedProcess
from tests.running.producers import forget_settings

ROOT = Path(__file__).parents[2]
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


# These commands start or become other processes, so they run in a process of their own.
STARTING = ("up", "worker", "demo")


@dataclass
class CommandLine:
    """Runs commands in a folder of their own; like the installed command, they import no modules of
    it.

    A call runs the command in this process, which saves the second that a process takes to start.
    `run` and `start` are for tests of a process's own signals, terminal and end.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def whole_environment(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name == "TIDEMILL_CACHE" or not name.startswith(("TIDEMILL_", "CELERY_"))
        }
        return {**inherited, "PYTHONPATH": str(ROOT), **self.environment}

    def __call__(self, *arguments: str, given: str | None = None) -> Ended:
        if arguments and arguments[0] in STARTING:
            return self.run(*arguments, given=given)
        streams = Streams(given or "")
        try:
            with here(self.folder, self.whole_environment), streams.in_place():
                status = main(arguments)
        except SettingsError:  # a Redis URL that Celery cannot read at its start
            return self.run(*arguments, given=given)
        out, err = streams.written()
        assert "Traceback" not in err
        return Ended(status, out, err)

    def run(self, *arguments: str, given: str | None = None, is_forked: bool = True) -> Ended:
        """Run the command as a process of its own, to its end."""
        with self.start(
            *arguments,
            is_forked=is_forked,
            stdin=subprocess.DEVNULL if given is None else subprocess.PIPE,
            errors="surrogateescape",  # a test may send bytes that are no text
        ) as process:
            out, err = process.communicate(given, timeout=120)
        assert "Traceback" not in err
        return Ended(process.returncode, out, err)

    def start(
        self, *arguments: str, is_forked: bool = True, **others: Any
    ) -> subprocess.Popen[Any]:
        """Start the command as a process of its own.

        is_forked: false in tests of what a process inherits
        others: of `subprocess.Popen`
        """
        return (ForkedProcess if is_forked else subprocess.Popen)(
            [*MODULE, "cli", *arguments],
            **{
                "cwd": self.folder,
                "env": self.whole_environment,
                **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"},
                # A shell that runs the tests in its background has them ignore it.
                "preexec_fn": None if is_forked else lambda: signal.signal(SIGINT, SIG_DFL),
                **others,
            },
        )

    def write(self, name: str, *rows: dict[str, Any] | str) -> Path:
        path = self.folder / name
        path.write_text(
            "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        )
        return path


class Streams:
    """The streams that a command reads and writes, in place of this process's own."""

    def __init__(self, given: str) -> None:
        self._in = io.TextIOWrapper(io.BytesIO(given.encode(errors="surrogateescape")))
        self._out, self._err = (
            io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        before = sys.stdin, sys.stdout, sys.stderr
        sys.stdin, sys.stdout, sys.stderr = self._in, self._out, self._err
        # A process writes unhandled log records there; pytest handles every record.
        handler = logging.StreamHandler(self._err)
        handler.setLevel(logging.WARNING)
        handler.addFilter(lambda record: not record.name.startswith("tasks"))  # cli.main's
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)
            sys.stdin, sys.stdout, sys.stderr = before

    def written(self) -> tuple[str, str]:
        """Standard output and standard error."""
        out, err = (
            bytes(stream.buffer.getvalue()).decode(errors="surrogateescape")  # type: ignore[attr-defined]
            for stream in (self._out, self._err)
        )
        return out, err


@contextmanager
def here(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Within this context the process has this folder and environment, and no earlier settings.

    Raises SettingsError if the environment has a Redis URL that cannot be read.
    """
    folder_before, environment_before = Path.cwd(), dict(os.environ)
    forget_settings()
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        # Celery reads its settings once per process, and this variable every time.
        os.environ["CELERY_BROKER_URL"] = settings.broker_url()
        yield
    finally:
        forget_settings()
        os.environ.clear()
        os.environ.update(environment_before)
        os.chdir(folder_before)


def ids(ended: Ended) -> list[str]:
    return [json.loads(line)["custom_id"] for line in ended.out.splitlines()]
