"""The `tidemill` command as its users have it: processes, files, exit statuses."""

import csv
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli.main import main
from db import queries
from db.session import Database
from tasks import settings
from tests.workers import PATIENCE_SECONDS

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


@pytest.fixture
def tidemill(tmp_path: Path) -> CommandLine:
    """Commands in a folder with a configuration, and nothing running."""
    (tmp_path / "tidemill.toml").write_text(CONFIG)
    return CommandLine(tmp_path)


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


@pytest.fixture
def stored(
    tidemill: CommandLine,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> InProcess:
    """Commands beside a migrated database, once on each, and no Redis that answers."""
    tidemill.environment = {
        "TIDEMILL_DATABASE_URL": database_url,
        "TIDEMILL_REDIS_URL": "redis://127.0.0.1:1/0",
        "COLUMNS": "200",
    }
    stored = InProcess(tidemill, monkeypatch, capsys)
    assert stored("migrate").status == 0
    return stored


def ids(ended: Ended) -> list[str]:
    return [json.loads(line)["custom_id"] for line in ended.out.splitlines()]


# --- without a worker --------------------------------------------------------------------------


def test_a_bad_line_is_reported_with_its_number_and_the_rest_goes_through(
    stored: InProcess,
) -> None:
    stored.write("a.jsonl", {"text": "x", "custom_id": "1"}, "{broken", {"text": "y"}, {"txt": "z"})

    ended = stored("submit", "summarize", "--file", "a.jsonl", "--batch", "b", "--json")

    assert ended.status == 1
    assert (ended.json["num_new"], ended.json["num_bad"]) == (2, 2)
    assert "a.jsonl, line 2 is not valid JSON" in ended.err
    assert "txt: is not a field of summarize; did you mean text?" in ended.err.splitlines()[1]
    assert ids(stored("results", "--state", "all", "--format", "jsonl")) == ["1", None]


def test_strict_enqueues_nothing_if_a_single_line_is_bad(stored: InProcess) -> None:
    stored.write("a.jsonl", {"text": "x"}, "{broken")

    ended = stored("submit", "summarize", "--file", "a.jsonl", "--strict")

    assert ended.status == 1
    assert ended.err.count("line 2") == 1
    assert stored("batches", "--json").json == []


def test_a_run_key_makes_a_second_submit_harmless(stored: InProcess) -> None:
    stored.write("a.jsonl", {"text": "x"}, {"text": "y"})
    arguments = ("submit", "summarize", "--file", "a.jsonl", "--run-key", "k")
    assert stored(*arguments).status == 0

    again = stored(*arguments)

    assert again.status == 0
    assert "already enqueued under run key k as batch k: 2 jobs (2 queued)" in again.out
    [batch] = stored("batches", "--json").json
    assert (batch["name"], batch["num_jobs"], batch["states"]) == ("k", 2, {"queued": 2})


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_no_batch(stored: InProcess, text: str) -> None:
    (stored.folder / "a.jsonl").write_text(text)

    ended = stored("submit", "summarize", "--file", "a.jsonl", "--run-key", "k")

    assert ended.status == 1
    assert "a.jsonl has no rows; nothing was enqueued" in ended.err
    assert stored("batches", "--json").json == []


def test_every_kind_of_source_is_taken(stored: InProcess) -> None:
    stored.write("a.jsonl", {"text": "from json lines", "custom_id": "jsonl"})
    stored.write("a.csv", "custom_id,text,metadata.station", "csv,from csv,north")
    pq.write_table(
        pa.table({"id": ["parquet"], "body": ["from parquet"], "more": [1]}),
        stored.folder / "a.parquet",
    )
    (stored.folder / "texts").mkdir()
    (stored.folder / "texts" / "file.txt").write_text("from a file")

    for arguments in (
        ("a.jsonl",),
        ("a.csv",),
        ("a.parquet", "--field", "text=body", "--field", "custom_id=id"),
        ("texts/",),
    ):
        assert stored("submit", "generate", *arguments).status == 0
    ended = stored("submit", "generate", "--file", "-", given='{"text": "x", "custom_id": "-"}\n')
    assert ended.status == 0

    found = ids(stored("results", "--state", "queued", "--format", "jsonl"))
    assert found == ["jsonl", "csv", "parquet", "file.txt", "-"]
    north = stored("results", "--state", "all", "--metadata", "station=north", "--format", "jsonl")
    assert ids(north) == ["csv"]


def test_a_parquet_file_without_the_column_is_refused_at_once(stored: InProcess) -> None:
    pq.write_table(pa.table({"custom_id": ["1"]}), stored.folder / "a.parquet")

    ended = stored("submit", "summarize", "--file", "a.parquet")

    assert ended.status == 1
    assert "a.parquet has no column 'text', which summarize needs; its columns: custom_id" in (
        ended.err
    )
    assert stored("batches", "--json").json == []


def test_results_are_written_in_every_format_and_page_by_cursor(stored: InProcess) -> None:
    rows = [{"text": "x", "custom_id": str(number)} for number in range(5)]
    stored.write("a.jsonl", *rows)
    stored("submit", "summarize", "--file", "a.jsonl")
    everything = ("results", "--state", "all")

    assert stored(*everything, "--format", "csv", "-o", "r.csv").status == 0
    assert stored(*everything, "-o", "r.parquet").status == 0  # its name says how
    table = stored(*everything, "--limit", "3")
    cursor = table.err.split("--after ")[1].strip()
    rest = stored(*everything, "--after", cursor, "--format", "jsonl")

    with (stored.folder / "r.csv").open(newline="") as file:
        assert [row["custom_id"] for row in csv.DictReader(file)] == ["0", "1", "2", "3", "4"]
    columns = pq.read_table(stored.folder / "r.parquet").to_pydict()
    assert columns["custom_id"] == ["0", "1", "2", "3", "4"]
    assert ids(rest) == ["3", "4"]
    assert not list(stored.folder.glob("*.part"))


def test_cancelled_jobs_can_be_retried_and_are_counted(stored: InProcess) -> None:
    stored.write("a.jsonl", {"text": "x"}, {"text": "y"})
    stored("submit", "summarize", "--file", "a.jsonl", "--batch", "b")
    first = json.loads(
        stored("results", "--state", "all", "--format", "jsonl", "--limit", "1").out
    )["id"]

    one = stored("cancel", first, "--json").json
    again = stored("cancel", first, str(uuid4()), "--json")
    rest = stored("cancel", "--batch", "b")
    none = stored("retry", "--batch", "b")
    back = stored("retry", "--batch", "b", "--state", "cancelled")

    assert one == {"changed": [first], "unchanged": {}, "unknown": []}
    assert again.status == 1
    assert again.json["unchanged"] == {first: "cancelled"}
    assert len(again.json["unknown"]) == 1
    assert rest.out == "1 job cancelled\n"
    assert none.out == "0 jobs queued again\n"
    assert back.out == "2 jobs queued again\n"
    [batch] = stored("batches", "--json").json
    assert batch["states"] == {"queued": 2}


def test_show_has_what_was_asked(stored: InProcess) -> None:
    pair = ("--source-language", "en", "--target-language", "fr")
    more = ("--param", "seed=7", "--metadata", "gate=2", "--priority", "5", "--batch", "b")
    assert stored("submit", "translate", "\x1b[2Jx", *pair, *more).status == 0
    [record] = stored("results", "--state", "all", "--format", "jsonl").out.splitlines()
    job_id = json.loads(record)["id"]

    shown = stored("show", job_id)
    details = stored("show", job_id, "--json").json

    assert details["contract"] == {
        "text": "\x1b[2Jx",
        "source_language": "en",
        "target_language": "fr",
        "seed": 7,
    }
    assert (details["lane"], details["priority"]) == ("bulk", 5)
    assert details["metadata"] == {"gate": "2"}
    assert details["provenance"] is None
    assert "\x1b" not in shown.out
    assert stored("show", str(uuid4())).status == 1


def test_without_redis_a_job_is_kept_and_the_doctor_says_what_is_wrong(
    stored: InProcess,
) -> None:
    submitted = stored.process("submit", "summarize", "a text")
    status = stored("status", "--json")
    doctor = stored("doctor", "--json")

    assert submitted.status == 0
    assert "job kept, not published yet" in submitted.err
    assert status.status == 1
    assert status.json["redis"]["reachable"] is False
    assert status.json["jobs"] == {"parrot": {"queued": 1}}
    assert doctor.status == 1
    wrong = {finding["subject"] for finding in doctor.json if not finding["ok"]}
    assert wrong == {"redis", "workers"}
    assert stored.process("worker").status == 1


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("", "text: is empty"),
        (" \n", "text: is empty"),
        ("a\x00b", "text: holds a NUL byte at position 1"),
        ("a\udcffb", "text: holds half a character (a lone surrogate) at position 1"),
    ],
)
def test_a_wrong_text_is_refused_with_the_fault(
    tidemill: CommandLine, given: str, fault: str
) -> None:
    tidemill.environment["TIDEMILL_DATABASE_URL"] = f"sqlite:///{tidemill.folder}/tidemill.db"
    tidemill("migrate")

    ended = tidemill("submit", "summarize", "-", given=given)

    assert ended.status == 1
    assert fault in ended.err
    assert tidemill("results", "--state", "all", "--format", "jsonl").out == ""


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("notes.txt", "notes.txt is none of the known kinds: .jsonl"),
        ("reprots.jsonl", "there is no file or folder reprots.jsonl"),
    ],
)
def test_the_name_of_a_file_is_not_submitted_as_a_text(
    stored: InProcess, name: str, fault: str
) -> None:
    stored.write("notes.txt", "What the keeper wrote.")

    ended = stored("submit", "summarize", name)

    assert ended.status == 1
    assert fault in ended.err
    assert stored("results", "--state", "all", "--format", "jsonl").out == ""


def test_an_unknown_model_is_refused_with_the_known_ones(stored: InProcess) -> None:
    ended = stored("submit", "summarize", "x", "--model", "ghost")

    assert ended.status == 1
    assert "there is no model 'ghost'; known models: parrot" in ended.err


def test_a_database_without_tables_or_at_another_revision_is_refused(
    stored: InProcess,
) -> None:
    assert stored("migrate", "--check").status == 0
    assert stored("migrate", "--to", "base").status == 0

    for command in (("status",), ("submit", "summarize", "x"), ("migrate", "--check")):
        ended = stored(*command)
        assert ended.status == 1
        assert "run `tidemill migrate`" in ended.err
    assert stored("migrate", "--to", "nowhere").status == 1


def test_a_folder_without_configuration_says_how_one_looks(tmp_path: Path) -> None:
    ended = CommandLine(tmp_path)("up")

    assert ended.status == 1
    assert "[models.reports]" in ended.err


# --- nightly -----------------------------------------------------------------------------------


def test_a_night_is_enqueued_once_over_all_its_parts(stored: InProcess) -> None:
    stored.write("reports.jsonl", {"text": "x", "custom_id": "1"}, {"text": "y", "custom_id": "2"})
    stored.write("questions.jsonl", {"text": "z", "custom_id": "1"})
    with sqlite3.connect(stored.folder / "source.db") as source:
        source.execute("CREATE TABLE documents AS SELECT 7 AS id, 'from sql' AS body")
    source.close()
    (stored.folder / "nightly.toml").write_text(
        'run_key = "night-{date}"\nmetadata = { origin = "archive" }\n'
        '[[parts]]\ntask = "summarize"\nsource = { path = "reports.jsonl" }\n'
        "params = { max_new_tokens = 3 }\n"
        '[[parts]]\ntask = "chat"\nsource = { path = "questions.jsonl" }\n'
        '[[parts]]\ntask = "generate"\n'
        f'source = {{ url = "sqlite:///{stored.folder}/source.db", '
        'query = "SELECT id AS custom_id, body AS text FROM documents" }\n'
    )
    arguments = ("nightly", "nightly.toml", "--date", "2026-01-31")

    rehearsed = stored(*arguments, "--dry-run")
    first = stored(*arguments, "--json")
    (stored.folder / "reports.jsonl").unlink()
    second = stored(*arguments)

    assert "would enqueue 4 jobs as batch night-2026-01-31" in rehearsed.out
    assert first.status == 0
    assert (first.json["num_new"], first.json["num_known"]) == (4, 0)
    assert second.status == 0
    assert "already enqueued under run key night-2026-01-31" in second.out
    found = stored("results", "--state", "all", "--metadata", "origin=archive", "--format", "jsonl")
    assert ids(found) == ["1", "2", "1", "7"]


def test_a_night_that_broke_off_goes_on_where_it_was(stored: InProcess) -> None:
    rows = [{"text": "x", "custom_id": str(number)} for number in range(3)]
    stored.write("reports.jsonl", *rows)
    config = 'task = "summarize"\nrun_key = "night"\nsource = { path = "reports.jsonl" }\n'
    (stored.folder / "nightly.toml").write_text(config)
    stored("nightly", "nightly.toml")
    _as_if_broken_off(stored.process.environment["TIDEMILL_DATABASE_URL"], "1")

    again = stored("nightly", "nightly.toml", "--json").json

    assert (again["num_new"], again["num_known"]) == (1, 2)
    [batch] = stored("batches", "--json").json
    assert batch["num_jobs"] == 3
    assert batch["closed_at"] is not None


def _as_if_broken_off(url: str, custom_id: str) -> None:
    from sqlalchemy import delete, update

    from db.models import Batch, Job

    database = Database(url)
    with database.write() as session:
        session.execute(delete(Job).where(Job.custom_id == custom_id))
        session.execute(update(Batch).values(closed_at=None))
    database.close()


def test_a_night_with_nothing_to_do_is_a_fault_unless_it_may_be(stored: InProcess) -> None:
    stored.write("reports.jsonl")
    config = 'task = "summarize"\nrun_key = "night"\nsource = { path = "reports.jsonl" }\n'
    (stored.folder / "nightly.toml").write_text(config)
    (stored.folder / "calm.toml").write_text("allow_empty = true\n" + config)

    assert stored("nightly", "nightly.toml").status == 1
    assert stored("nightly", "calm.toml").status == 0
    assert stored("batches", "--json").json == []


# --- with everything running -------------------------------------------------------------------


def wait_for(
    condition: Any, process: subprocess.Popen[str], seconds: float = PATIENCE_SECONDS
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """Commands in the folder of a running `tidemill up`, with no settings at all."""
    folder = tmp_path_factory.mktemp("up")
    (folder / "tidemill.toml").write_text(CONFIG)
    tidemill = CommandLine(folder)
    up = tidemill.start("up")
    try:
        wait_for((folder / ".tidemill" / "run.json").exists, up)
        yield tidemill
    finally:
        up.send_signal(signal.SIGTERM)
        up.communicate(timeout=PATIENCE_SECONDS)


def test_one_text_comes_back(running: CommandLine) -> None:
    plain = running("submit", "summarize", "one two three", "--wait", "--param", "max_new_tokens=4")
    record = running("submit", "chat", "one two three", "--wait", "--json").json

    assert plain.status == 0
    assert len(plain.out.split()) == 4
    assert record["state"] == "succeeded"
    assert record["output"]
    shown = running("show", record["id"], "--json").json
    assert shown["attempt"] == 1
    assert shown["provenance"]


def test_a_file_is_waited_for_and_its_results_are_found(running: CommandLine) -> None:
    rows = [{"text": f"text number {number}", "custom_id": f"w{number}"} for number in range(40)]
    running.write("a.jsonl", *rows)

    submitted = running("submit", "summarize", "a.jsonl", "--run-key", "w", "--wait", "--json")
    watched = running("watch", "w")
    found = running("results", "--batch", "w", "--format", "jsonl")

    assert submitted.status == 0
    assert submitted.json["states"] == {"succeeded": 40}
    assert watched.status == 0
    assert "w: 40 succeeded" in watched.out
    assert sorted(ids(found)) == sorted(row["custom_id"] for row in rows)


def test_a_job_that_fails_is_the_status_of_waiting_for_it(running: CommandLine) -> None:
    running.write("b.jsonl", {"text": "one two"}, {"text": "one two three four five"})

    one = running("submit", "generate", "one two three four", "--model", "terse", "--wait")
    many = running("submit", "generate", "b.jsonl", "--model", "terse", "--wait", "--batch", "b")
    watched = running("watch", "b")
    failed = running("results", "--batch", "b", "--state", "failed", "--format", "jsonl")

    assert (one.status, many.status, watched.status) == (1, 1, 1)
    assert one.out == ""
    assert "the job is failed: " in one.err
    assert "b: 1 succeeded, 1 failed" in many.out
    assert json.loads(failed.out)["error"]["code"] == "prompt_too_long"


def test_a_worker_of_its_own_joins_and_leaves(running: CommandLine) -> None:
    written = json.loads((running.folder / ".tidemill" / "run.json").read_text())
    database = Database(written["database_url"])

    def num_workers() -> int:
        with database.read() as session:
            return len(session.scalars(queries.live_workers()).all())

    worker = running.start("worker", "--models", "parrot", "--name", "second")
    try:
        wait_for(lambda: num_workers() == 2, worker)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=PATIENCE_SECONDS)

    assert worker.returncode == 0
    assert num_workers() == 1
    database.close()
    refused = running("worker", "--models", "ghost")
    assert refused.status == 1
    assert "there is no model 'ghost'" in refused.err


def test_the_doctor_finds_nothing_wrong(running: CommandLine) -> None:
    ended = running("doctor", "--json")
    status = running("status", "--json").json

    assert ended.status == 0, ended.out
    assert len(status["workers"]) == 1
    assert status["redis"]["maxmemory_policy"] == "noeviction"
    assert "***" in status["redis"]["url"]


def test_a_second_up_says_that_one_runs_and_leaves_it_alone(running: CommandLine) -> None:
    second = running("up")

    assert second.status == 1
    assert "already runs in" in second.err
    assert running("doctor").status == 0


def test_what_up_writes_is_for_its_user_only(running: CommandLine) -> None:
    assert (running.folder / ".tidemill" / "run.json").stat().st_mode & 0o077 == 0


def tree_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_up_ends_no_process_is_left(tidemill: CommandLine, how: signal.Signals) -> None:
    up = tidemill.start("up")
    wait_for((tidemill.folder / ".tidemill" / "run.json").exists, up)
    children = tree_of(up)
    assert len(children) >= 3  # Valkey, the worker, its engine

    up.send_signal(how)
    out, err = up.communicate(timeout=PATIENCE_SECONDS)
    _, left = psutil.wait_procs(children, timeout=PATIENCE_SECONDS)

    assert left == []
    assert (tidemill.folder / ".tidemill" / "run.json").exists() == (how is signal.SIGKILL)
    if how is not signal.SIGKILL:
        assert up.returncode == 0, (out, err)


def test_modules_of_the_folder_do_not_stand_in_for_ours(tidemill: CommandLine) -> None:
    """Many folders that use Celery have a tasks.py, and a worker is easily one, too."""
    for name in ("tasks.py", "worker.py", "db.py", "cli.py"):
        tidemill.write(name, "raise SystemExit('the wrong one')")
    up = tidemill.start("up")
    try:
        wait_for((tidemill.folder / ".tidemill" / "run.json").exists, up)
        assert tidemill("submit", "generate", "one two", "--wait").status == 0
    finally:
        up.send_signal(signal.SIGTERM)
        up.communicate(timeout=PATIENCE_SECONDS)
    assert up.returncode == 0


def test_up_starts_again_after_it_was_killed(tidemill: CommandLine) -> None:
    run_file = tidemill.folder / ".tidemill" / "run.json"
    first = tidemill.start("up")
    wait_for(run_file.exists, first)
    written = run_file.read_text()
    first.kill()
    first.communicate()
    assert "is gone" in tidemill("doctor").out

    second = tidemill.start("up")
    try:
        wait_for(lambda: run_file.exists() and run_file.read_text() != written, second)
        assert tidemill("submit", "generate", "still here", "--wait").status == 0
    finally:
        second.send_signal(signal.SIGINT)
        second.communicate(timeout=PATIENCE_SECONDS)


def test_up_ends_with_the_reason_when_a_model_cannot_be_loaded(tidemill: CommandLine) -> None:
    (tidemill.folder / "nothing").mkdir()
    (tidemill.folder / "tidemill.toml").write_text(
        '[models.ghost]\ncheckpoint = "nothing"\ntasks = ["generate"]\n'
    )

    ended = tidemill("up")

    assert ended.status == 1
    assert "the worker ended" in ended.err
    assert "nothing" in ended.err
    assert not (tidemill.folder / ".tidemill" / "run.json").exists()


def test_the_demo_goes_the_whole_road_and_knows_its_batch_again(tidemill: CommandLine) -> None:
    examples = tidemill.folder / "examples"
    (examples / "nightly").mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "nightly.toml", examples)
    texts = [{"text": f"text {number}", "custom_id": f"{number}"} for number in range(5)]
    for name in ("reports", "sentences", "stories", "questions"):
        tidemill.write(f"examples/nightly/{name}.jsonl", *texts)

    first = tidemill("demo")
    second = tidemill("demo")

    assert first.status == 0, first.err
    assert "enqueued 20 jobs as batch demo-" in first.out
    for task in ("summarize", "translate", "generate", "chat"):
        assert f"\n{task}" in first.out
    assert "Try next:" in first.out
    assert second.status == 0
    assert "already enqueued under run key demo-" in second.out
    assert "20 jobs (20 succeeded)" in second.out
