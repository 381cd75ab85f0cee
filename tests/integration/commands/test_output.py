"""What commands write where the terminal is poor, the pipe is closed or the disk is full."""

import csv
import io
import json
import os
import pty
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from db.session import Database
from db.states import JobState
from tests.running.commands import CommandLine
from tests.samples.jobs import insert_job

HOSTILE = "=é ☃ …\x1b[2J\x9b31m\x07\u202e [red]x[/red]"
COMMANDS = (
    *(("results", "--state", "all", "--format", format) for format in ("table", "jsonl", "csv")),
    ("results", "--state", "all", "--input", "--columns", "id,metadata,output,error"),
    *(("batches",), ("batches", "--json"), ("status",), ("status", "--json"), ("doctor",)),
    *(("models",), ("models", "--json"), ("watch", "nothing \udcff"), ("--help",)),
    *(("results", "--help"), ("results", "--batch", "\udcff"), ("results", "--columns", "é")),
    ("results", "--state", "all", "-o", "\udcff/x.csv"),
)


@pytest.fixture
def stocked(tidemill: CommandLine) -> CommandLine:
    """Commands beside an SQLite database with a batch whose every text is hostile."""
    url = f"sqlite:///{tidemill.folder}/tidemill.db"
    tidemill.environment = {
        "TIDEMILL_DATABASE_URL": url,
        "TIDEMILL_REDIS_URL": "redis://127.0.0.1:1/0",
    }
    assert tidemill("migrate").status == 0
    tidemill.write("a.jsonl", {"text": HOSTILE, "custom_id": HOSTILE, "metadata": {"k": HOSTILE}})
    name = HOSTILE.replace("\x9b", "")
    assert tidemill("submit", "summarize", "a.jsonl", "--batch", name).status == 0
    database = Database(url)
    insert_job(database, state=JobState.FAILED, error_code="odd", error_message=HOSTILE)
    database.close()
    return tidemill


# Runs commands one after another, each with standard streams as it finds them at its start.
ONE_PROCESS = """
import os, sys
from cli.main import main

for number, command in enumerate(sys.stdin.buffer.read().split(b"\\1")):
    for stream in (sys.stdout, sys.stderr):
        file = os.open(f"{number}.{stream.fileno()}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream.fileno())
        os.close(file)
    status = main([os.fsdecode(argument) for argument in command.split(b"\\0")])
    with open(f"{number}.status", "w") as file:
        file.write(str(status))
"""


def in_encoding(
    tidemill: CommandLine, encoding: str, commands: Iterable[tuple[str, ...]]
) -> Iterator[tuple[int, bytes, bytes]]:
    """Status, output and errors of commands in a process with a terminal's encoding."""
    poor = {
        "LANG": "C",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "COLUMNS": "200",
    }
    encoded = [b"\0".join(map(os.fsencode, arguments)) for arguments in commands]
    subprocess.run(
        [sys.executable, "-P", "-c", ONE_PROCESS],
        cwd=tidemill.folder,
        env={**tidemill.whole_environment, **poor, "PYTHONIOENCODING": encoding},
        input=b"\1".join(encoded),
        timeout=120,
        check=True,
    )
    for number in range(len(encoded)):
        status = int((tidemill.folder / f"{number}.status").read_text())
        out, err = ((tidemill.folder / f"{number}.{each}").read_bytes() for each in (1, 2))
        yield status, out, err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_every_command_survives_an_encoding_of_few_characters(
    stocked: CommandLine, encoding: str
) -> None:
    *ended, (_, table, _) = in_encoding(
        stocked, encoding, (*COMMANDS, ("results", "--state", "all"))
    )
    for arguments, (status, out, err) in zip(COMMANDS, ended, strict=True):
        assert b"fault in Tidemill" not in err, (arguments, err)
        assert b"Traceback" not in err, (arguments, err)
        assert status in (0, 1, 2)
        assert b"\x1b" not in err
        if "csv" in arguments:
            assert HOSTILE in out.decode("utf-8"), "a file, so it is UTF-8 and has everything"
            continue
        shown = out.decode(encoding)
        assert not set(shown) & set("\x1b\x9b\x07\u202e"), arguments
        if "jsonl" in arguments:
            assert json.loads(out.splitlines()[0])["custom_id"] == HOSTILE
    assert b"\\u2603" in table
    assert b"[red]x[/red]" in table


def test_nothing_hostile_reaches_a_terminal(stocked: CommandLine) -> None:
    for format in ("table", "jsonl", "csv"):
        arguments = ("results", "--state", "all", "--format", format)
        shown = on_terminal(stocked, *arguments, NO_COLOR="1")
        assert not set(shown) & set("\x9b\x07\u202e"), (format, shown)
        assert "\x1b[2J" not in shown
        assert "☃" in shown


def on_terminal(tidemill: CommandLine, *arguments: str, **environment: str) -> str:
    """What a command writes to a terminal that it has for itself."""
    ours, theirs = pty.openpty()
    whole_environment = {**tidemill.whole_environment, "TERM": "xterm", **environment}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    with tidemill.start(*arguments, env=whole_environment, **streams):
        os.close(theirs)
        written = bytearray()
        try:
            while some := os.read(ours, 65536):
                written += some
        except OSError:  # the other end has been closed
            pass
    os.close(ours)
    return written.decode()


def test_colors_are_for_terminals_that_want_them(stocked: CommandLine) -> None:
    assert "\x1b[31m" in on_terminal(stocked, "doctor")
    assert "\x1b[31m" not in on_terminal(stocked, "doctor", NO_COLOR="1")
    assert "\x1b" not in stocked("doctor").out


def test_a_terminal_of_20_columns_is_enough(stocked: CommandLine) -> None:
    stocked.environment["COLUMNS"] = "20"
    for arguments in COMMANDS:
        assert "fault in Tidemill" not in stocked(*arguments).err
    shown = stocked("results", "--state", "all").out
    assert max(map(len, shown.splitlines())) <= 20
    assert "[red]x[/red]" in shown.replace("\n", " ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("results", "--state", "all", "--format", "jsonl"),
        ("results", "--state", "all", "--format", "csv"),
        ("results", "--state", "all", "--format", "parquet"),
        ("results", "--state", "all"),
        ("batches", "--json"),
        ("--help",),
    ],
)
def test_a_full_disk_and_a_closed_pipe_end_a_command_in_words(
    stocked: CommandLine, arguments: tuple[str, ...]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for to, words in ((os.open("/dev/full", os.O_WRONLY), "standard output"), (writer, "")):
        with stocked.start(*arguments, stdout=to) as process:
            _, err = process.communicate(timeout=120)
        os.close(to)
        said = f"tidemill: {words} cannot be written: No space left on device\n" if words else ""
        assert (process.returncode, err) == (1, said)


def test_a_process_that_buffers_nothing_says_once_that_the_disk_is_full(
    stocked: CommandLine,
) -> None:
    environment = {**stocked.whole_environment, "PYTHONUNBUFFERED": "1"}
    with (
        open("/dev/full", "w") as to,
        stocked.start("--help", stdout=to, env=environment) as process,
    ):
        _, err = process.communicate(timeout=120)
    assert (process.returncode, err.count("\n")) == (1, 1)


def test_a_file_that_cannot_be_written_is_named_and_not_left_behind(stocked: CommandLine) -> None:
    noise = "".join(str(number**7) for number in range(20_000))
    stocked.write("b.jsonl", {"text": noise})
    assert stocked("submit", "summarize", "b.jsonl").status == 0

    def little_room() -> None:  # as much as SQLite needs to be read
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    for name in ("r.csv", "r.jsonl", "r.parquet"):
        ended = subprocess.run(
            [sys.executable, "-BPm", "cli", "results", "--state", "all", "--input", "-o", name],
            cwd=stocked.folder,
            env=stocked.whole_environment,
            capture_output=True,
            text=True,
            preexec_fn=little_room,
            timeout=120,
        )
        assert (ended.returncode, ended.stderr) == (1, f"tidemill: {name}: File too large\n")
        assert not list(stocked.folder.glob("r.*"))


def test_every_format_has_the_chosen_columns_filters_and_order(stored: CommandLine) -> None:
    rows = [{"text": f"text {number}", "custom_id": str(number)} for number in range(4)]
    stored.write("a.jsonl", *rows)
    stored("submit", "summarize", "--file", "a.jsonl", "--tenant", "press")
    chosen = ("results", "--state", "all", "--columns", "custom_id,input,tenant")
    newest = [{"custom_id": str(n), "input": f"text {n}", "tenant": "press"} for n in (3, 2, 1, 0)]

    lines = stored(*chosen, "--sort", "newest", "--format", "jsonl").out.splitlines()
    assert [json.loads(line) for line in lines] == newest
    table = stored(*chosen, "--sort", "newest", "--limit", "3")
    assert [line.split()[0] for line in table.out.splitlines()] == ["custom", "3", "2", "1"]
    cursor = table.err.split("--after ")[1].strip()
    rest = stored(*chosen, "--sort", "newest", "--after", cursor, "--format", "csv").out
    assert list(csv.DictReader(io.StringIO(rest))) == newest[3:]
    assert stored(*chosen, "-o", "r.parquet").status == 0
    assert pq.read_table(stored.folder / "r.parquet").to_pylist() == newest[::-1]

    with_input = stored("results", "--state", "all", "--input", "--format", "jsonl").out
    assert json.loads(with_input.splitlines()[0])["input"] == "text 0"
    assert "text 0" in stored("results", "--state", "all", "--input").out
    for nothing in (
        ("--finish-reason", "length"),
        ("--error-code", "engine_crash"),
        ("--min-duration", "0"),
    ):
        assert "matches" in stored("results", *nothing).out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--columns", "id,nothing"), "'nothing' is no column"),
        (("--min-duration", "nan"), "must be seconds"),
        (("--max-duration", "-1"), "must be seconds"),
        (("--min-duration", "2", "--max-duration", "1"), "is above --max-duration"),
        (("--raw",), "is about CSV"),
        (("--sort", "best"), "'best'"),
        (("--finish-reason", "stopped"), "'stopped'"),
    ],
)
def test_invalid_options_are_refused_with_the_valid_ones(
    tidemill: CommandLine, arguments: tuple[str, ...], words: str
) -> None:
    ended = tidemill("results", *arguments)

    assert ended.status == 2
    assert words in " ".join(ended.err.replace("│", " ").split())


def test_csv_is_safe_in_a_spreadsheet_unless_raw(stocked: CommandLine, tmp_path: Path) -> None:
    for raw, begins in (((), "'="), (("--raw",), "=")):
        ended = stocked("results", "--state", "all", "--format", "csv", *raw, "-o", "r.csv")
        assert ended.status == 0
        with (stocked.folder / "r.csv").open(newline="", encoding="utf-8") as file:
            first = next(csv.DictReader(file))
        assert first["custom_id"] == begins + HOSTILE[1:]
