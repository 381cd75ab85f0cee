"""The `tidemill` command: registers all commands, and handles how they end.

Exit statuses: 0 done, 1 not done or something failed, 2 wrong usage, 130 interrupted. Every error
is one sentence on standard error. Commands import their modules when they run, so that `--help` is
quick.
"""

import errno
import functools
import gc
import io
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from cli.commands.enqueue import cancel, nightly, retry, submit
from cli.commands.look_after import (
    audit,
    backup,
    doctor,
    erase,
    export,
    keys,
    messages,
    models,
    prune,
)
from cli.commands.read import (
    batches,
    canaries,
    quality,
    reproduce,
    results,
    show,
    status,
    top,
    watch,
)
from cli.commands.start import demo, migrate, up, worker
from cli.output.escaping import FALLBACK
from cli.output.terminal import say, warn
from cli.usage import Command

app = typer.Typer(
    name="tidemill",
    help="Text jobs from a queue, through a language model, into a database.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)
START, ENQUEUE, READ, KEEP = "Start", "Enqueue", "Read", "Look after"
for panel, name, command, example in (
    (START, "up", up.up, "tidemill up --models summarizer"),
    (START, "worker", worker.worker, "tidemill worker --models summarizer,translator"),
    (START, "migrate", migrate.migrate, "tidemill migrate --check"),
    (START, "demo", demo.demo, "make demo"),
    (ENQUEUE, "submit", submit.submit, submit.EXAMPLES),
    (ENQUEUE, "nightly", nightly.nightly, "tidemill nightly nightly.toml --wait"),
    (ENQUEUE, "cancel", cancel.cancel, "tidemill cancel --batch nightly-2026-01-31"),
    (ENQUEUE, "retry", retry.retry, "tidemill retry --batch nightly-2026-01-31"),
    (READ, "watch", watch.watch, "tidemill watch nightly-2026-01-31"),
    (READ, "status", status.status, "tidemill status --json"),
    (READ, "top", top.top, "tidemill top"),
    (READ, "batches", batches.batches, "tidemill batches --limit 5"),
    (READ, "results", results.results, "tidemill results --batch NAME --format jsonl | jq .output"),
    (READ, "quality", quality.quality, "tidemill quality --hours 24 --check"),
    (READ, "canaries", canaries.canaries, "tidemill canaries --run"),
    (READ, "show", show.show, "tidemill show 01a20a9c-8646-70ad-ab14-32e4e2328b4c"),
    (
        READ,
        "reproduce",
        reproduce.reproduce,
        "tidemill reproduce 01a20a9c-8646-70ad-ab14-32e4e2328b4c",
    ),
    (KEEP, "models", models.models, "tidemill models"),
    (KEEP, "messages", messages.messages, "tidemill messages --limit 20"),
    (KEEP, "prune", prune.prune, "tidemill prune --dry-run"),
    (KEEP, "backup", backup.backup, "tidemill backup tidemill-2026-01-31.db"),
    (KEEP, "export", export.export, "tidemill export --tenant acme -o acme.jsonl"),
    (KEEP, "erase", erase.erase, "tidemill erase --metadata patient=7 --dry-run"),
    (KEEP, "doctor", doctor.doctor, "tidemill doctor"),
):
    lines = [example] if isinstance(example, str) else example
    epilog = "\n\n".join(f"Example: {line}" for line in lines)
    app.command(name, cls=Command, rich_help_panel=panel, epilog=epilog)(command)
app.add_typer(audit.audit, name="audit", rich_help_panel=KEEP)
app.add_typer(keys.keys, name="keys", rich_help_panel=KEEP)


def _version(is_requested: bool) -> None:
    if is_requested:
        from importlib.metadata import PackageNotFoundError, version

        try:
            say(f"tidemill {version('tidemill')}")
        except PackageNotFoundError:
            say("tidemill, not installed")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


class _Warnings(logging.Handler):
    """Prints the log records of the packages below as sentences with fields."""

    def emit(self, record: logging.LogRecord) -> None:
        common = vars(logging.makeLogRecord({}))
        fields = [
            f"{key}={value}"
            for key, value in vars(record).items()
            if key not in common and key not in ("message", "asctime")
        ]
        more = f" ({', '.join(fields)})" if fields else ""
        warn(record.getMessage() + more)


@contextmanager
def _warnings_in_words() -> Iterator[None]:
    logger, handler = logging.getLogger("tasks"), _Warnings(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    _take_every_character()
    thresholds = gc.get_threshold()
    # Imports are most of a command, and make no garbage: a tenth of its time went on looking.
    gc.set_threshold(100_000, *thresholds[1:])
    try:
        status = _run(arguments)
    finally:
        gc.set_threshold(*thresholds)
    if (fault := _fault_of_output()) is None:
        return status
    if fault:
        warn(fault)
    return status or 1


@functools.cache
def _command() -> Callable[..., Any]:
    """The whole command, built once in a process."""
    return typer.main.get_command(app)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        with _warnings_in_words():
            _command()(args=arguments, prog_name="tidemill")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:  # the last place to turn a traceback into words
        from cli.failure import sentence_of

        if os.environ.get("TIDEMILL_DEBUG"):
            raise
        is_of_output = isinstance(error, OSError) and _is_of_output(error)
        if is_of_output:
            _fault_of_output()  # of the rest, which is lost as well; it is said once
        warn(_unwritable(error) if is_of_output else sentence_of(error))
        return 1
    return 0


def _take_every_character() -> None:
    """Let no character end a command, whatever the terminal's encoding."""
    if sys.stdout is None:  # closed by whoever started this
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=FALLBACK)


def _fault_of_output() -> str | None:
    """The reason that standard output cannot be written; "" if its reader has gone.

    After this nothing more is written there, even at exit.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "" if isinstance(error, BrokenPipeError) else _unwritable(error)
    return None


def _is_of_output(error: OSError) -> bool:
    """Whether an error came from a write to standard output."""
    if error.filename is not None or error.errno not in NO_ROOM:
        return False
    try:
        return not sys.stdout.isatty() and not stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode)
    except (OSError, ValueError):
        return False


def _unwritable(error: BaseException) -> str:
    return f"standard output cannot be written: {getattr(error, 'strerror', error)}"
