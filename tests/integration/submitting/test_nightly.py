"""A night is enqueued once, whatever it is made of and wherever it broke off."""

import json
import re
import sqlite3
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from db.session import Database
from tests.running.commands import CommandLine, ids


def test_a_night_is_enqueued_once_over_all_its_parts(stored: CommandLine) -> None:
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


def test_an_interrupted_night_continues_where_it_stopped(stored: CommandLine) -> None:
    rows = [{"text": "x", "custom_id": str(number)} for number in range(3)]
    stored.write("reports.jsonl", *rows)
    config = 'task = "summarize"\nrun_key = "night"\nsource = { path = "reports.jsonl" }\n'
    (stored.folder / "nightly.toml").write_text(config)
    stored("nightly", "nightly.toml")
    _as_if_broken_off(stored.environment["TIDEMILL_DATABASE_URL"], "1")

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


def test_a_night_with_nothing_to_do_is_a_fault_unless_it_may_be(stored: CommandLine) -> None:
    stored.write("reports.jsonl")
    config = 'task = "summarize"\nrun_key = "night"\nsource = { path = "reports.jsonl" }\n'
    (stored.folder / "nightly.toml").write_text(config)
    (stored.folder / "calm.toml").write_text("allow_empty = true\n" + config)

    assert stored("nightly", "nightly.toml").status == 1
    assert stored("nightly", "calm.toml").status == 0
    assert stored("batches", "--json").json == []


# --- a night of which a part is not as it should be --------------------------------------------

EVERYTHING = ("results", "--state", "all", "--format", "jsonl")
TEXT = {"text": "x", "custom_id": "1"}


def write_empty(folder: Path, kind: str) -> str:
    """A source without rows of each kind; returns what its `source` says."""
    path = folder / f"empty.{kind}"
    if kind == "folder":
        path.mkdir()
        (path / ".hidden").write_text("x")
    elif kind == "parquet":
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    elif kind == "header.csv":
        path.write_text("custom_id,text\n")
    elif kind == "query":
        with sqlite3.connect(path) as source:
            source.execute("CREATE TABLE documents (text)")
        source.close()
        return f'{{ url = "sqlite:///{path}", query = "SELECT text FROM documents" }}'
    else:
        path.write_text("" if kind.startswith("0") else "\n\n")
    return f'{{ path = "{path.name}" }}'


def write_night(folder: Path, *sources: str, more: str = "", of_part: str = "") -> None:
    """A part for each source."""
    parts = [f'[[parts]]\ntask = "summarize"\nsource = {source}\n{of_part}' for source in sources]
    (folder / "nightly.toml").write_text('run_key = "night"\n' + more + "\n" + "\n".join(parts))


KINDS = [
    "0.jsonl",
    "1.jsonl",
    "0.csv",
    "1.csv",
    "header.csv",
    "0.parquet",
    "parquet",
    "folder",
    "query",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_night_with_one_empty_part_of_five_is_refused(stored: CommandLine, kind: str) -> None:
    good = [f'{{ path = "{n}.jsonl" }}' for n in range(4)]
    for n in range(4):
        stored.write(f"{n}.jsonl", TEXT)
    empty = write_empty(stored.folder, kind)
    write_night(stored.folder, *good[:2], empty, *good[2:])

    rehearsed = stored("nightly", "nightly.toml", "--dry-run")
    strict = stored("nightly", "nightly.toml", "--strict")
    assert (rehearsed.status, strict.status) == (1, 1)
    assert stored(*EVERYTHING).out == ""
    first = stored("nightly", "nightly.toml", "--json")
    again = stored("nightly", "nightly.toml", "--json")

    for ended in (rehearsed, strict, first, again):
        assert re.search(r"empty\.\S+ has no rows", ended.err)
    assert (first.status, first.json["num_new"]) == (1, 4)
    assert [name.rpartition("/")[2] for name in first.json["empty_sources"]] == [f"empty.{kind}"]
    assert (again.status, again.json["num_new"], again.json["num_known"]) == (1, 0, 4)

    write_night(stored.folder, *good[:2], '{ path = "0.jsonl" }', *good[2:])
    mended, done = stored("nightly", "nightly.toml", "--json"), stored("nightly", "nightly.toml")

    assert (mended.status, mended.json["num_new"], mended.json["num_known"]) == (0, 1, 4)
    assert done.status == 0
    assert "already enqueued" in done.out


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_may_be_declared_to_be_empty(stored: CommandLine, kind: str) -> None:
    stored.write("a.jsonl", TEXT)
    sources = write_empty(stored.folder, kind), '{ path = "a.jsonl" }'
    write_night(stored.folder, sources[0])
    assert stored("nightly", "nightly.toml").status == 1

    write_night(stored.folder, sources[0], more="allow_empty = true")
    assert stored("nightly", "nightly.toml").status == 0
    assert stored("batches", "--json").json == []
    write_night(stored.folder, *sources, of_part="allow_empty = true\n")
    assert stored("nightly", "nightly.toml").status == 0
    assert stored("nightly", "nightly.toml", "--dry-run").status == 0


def test_a_part_that_cannot_be_read_stops_no_other_part(stored: CommandLine) -> None:
    stored.write("a.jsonl", TEXT)
    (stored.folder / "b.csv").write_bytes("text\nx\n".encode("utf-16-le"))  # no mark that says so
    stored.write("c.jsonl", TEXT)
    write_night(
        stored.folder, *(f'{{ path = "{name}" }}' for name in ("a.jsonl", "b.csv", "c.jsonl"))
    )

    ended = stored("nightly", "nightly.toml", "--json")
    assert (ended.status, ended.json["num_new"]) == (1, 2)
    assert "b.csv is UTF-16, by its look" in ended.err
    assert len(ended.json["failed_sources"]) == 1

    (stored.folder / "b.csv").write_text("text\nx\n")
    mended = stored("nightly", "nightly.toml", "--json")
    assert (mended.status, mended.json["num_new"], mended.json["num_known"]) == (0, 1, 2)


def test_a_source_that_is_not_there_stops_the_night_before_it_begins(stored: CommandLine) -> None:
    stored.write("a.jsonl", TEXT)
    write_night(stored.folder, '{ path = "a.jsonl" }', '{ path = "gone.jsonl" }')

    ended = stored("nightly", "nightly.toml")

    assert ended.status == 1
    assert "gone.jsonl" in ended.err
    assert stored("batches", "--json").json == []


@pytest.mark.parametrize("rows", [["{broken", "{}"], ["{broken", {"text": "y"}]])
def test_refused_rows_are_status_1_whatever_else_there_is(
    stored: CommandLine, rows: list[dict[str, str] | str]
) -> None:
    stored.write("a.jsonl", TEXT)
    stored.write("b.jsonl", *rows)
    write_night(stored.folder, '{ path = "a.jsonl" }', '{ path = "b.jsonl" }')

    assert stored("nightly", "nightly.toml", "--dry-run").status == 1
    assert stored("nightly", "nightly.toml", "--strict").status == 1
    assert stored("batches", "--json").json == []
    ended = stored("nightly", "nightly.toml", "--json")
    assert (ended.status, ended.json["empty_sources"]) == (1, [])


def test_a_query_that_would_drop_a_table_is_refused(stored: CommandLine) -> None:
    path = stored.folder / "source.db"
    with sqlite3.connect(path) as source:
        source.execute("CREATE TABLE documents AS SELECT 'x' AS text")
    source.close()
    for query in ("DROP TABLE documents", "SELECT text FROM documents; DROP TABLE documents"):
        write_night(stored.folder, f'{{ url = "sqlite:///{path}", query = "{query}" }}')

        assert stored("nightly", "nightly.toml").status == 1

    with sqlite3.connect(path) as source:
        assert source.execute("SELECT text FROM documents").fetchall() == [("x",)]
    source.close()


# --- every bad row ---------------------------------------------------------------------------


def test_every_row_that_is_left_out_is_in_the_file_of_errors(stored: CommandLine) -> None:
    secret = "what nobody may read"
    rows = [{"text": secret, "max_new_tokens": True} for _ in range(30)]
    stored.write(
        "a.jsonl", TEXT, *rows, "{broken", TEXT, {**TEXT, "custom_id": "2", "model": "ghost"}
    )
    write_night(stored.folder, '{ path = "a.jsonl" }', more='errors = "left-out.jsonl"')

    ended = stored("nightly", "nightly.toml")
    lines = (stored.folder / "left-out.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]

    assert ended.status == 1
    assert "... and 13 more rows: " in ended.err
    assert "left-out.jsonl" in ended.err
    assert [each["position"] for each in found] == list(range(2, 35))
    assert {each["place"] for each in found[:30]} == {f"line {n}" for n in range(2, 32)}
    assert [each["code"] for each in found[29:]] == [
        *("invalid_contract", "unreadable_row", "duplicate_id", "unknown_model")
    ]
    assert found[0]["problem"] == "max_new_tokens: must be a number, not True"
    assert found[31]["problem"].startswith("custom_id: is that of line 1 too")
    assert secret not in "".join(lines) + ended.err

    assert "already enqueued" in stored("nightly", "nightly.toml").out
    assert (stored.folder / "left-out.jsonl").read_text().splitlines() == lines
    rehearsed = stored("nightly", "nightly.toml", "--dry-run", "--errors", "other.jsonl")
    assert rehearsed.status == 1
    assert (stored.folder / "other.jsonl").read_text().splitlines() == lines


def test_an_errors_file_that_cannot_be_written_stops_the_command_before_it_begins(
    stored: CommandLine,
) -> None:
    stored.write("a.jsonl", TEXT)

    for where in ("none/errors.jsonl", "."):
        ended = stored("submit", "summarize", "a.jsonl", "--errors", where)
        assert ended.status == 1
        assert "cannot be written" in ended.err
    assert stored("batches", "--json").json == []


@pytest.mark.parametrize("key", [(), ("--run-key", "k")])
def test_a_custom_id_that_comes_twice_is_a_bad_row(
    stored: CommandLine, key: tuple[str, ...]
) -> None:
    stored.write("a.csv", "custom_id,text", "1,x", "2,y", "1,z", "2,y")

    ended = stored("submit", "summarize", "a.csv", *key, "--json")

    assert (ended.status, ended.json["num_new"], ended.json["num_bad"]) == (1, 2, 2)
    assert "a.csv, line 4: custom_id: is that of line 2 too" in ended.err
    assert "a.csv, line 5: custom_id: is that of line 3 too" in ended.err
    assert ids(stored(*EVERYTHING)) == ["1", "2"]
    again = stored("submit", "summarize", "a.csv", *key, "--json")
    assert again.json["num_new"] == (0 if key else 2)
