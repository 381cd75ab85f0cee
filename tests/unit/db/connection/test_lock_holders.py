"""A locked SQLite database is read all the same, and who locks it is named."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from cli.failure import sentence_of
from cli.stack.write_trial import write_fault
from db import schema
from db.connection.database_url import file_url
from db.errors import DatabaseLocked
from db.session import Database

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
connection.execute("BEGIN EXCLUSIVE")
connection.execute("CREATE TABLE held (x)")
print("held", flush=True)
sys.stdin.read()
"""


def holding(file: Path, pragma: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file), pragma],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tidemill.db"
    made = Database(file_url(path))
    schema.migrate(made)
    made.close()
    return path


@pytest.fixture
def held(file: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that writes and does not end."""
    process = holding(file, "PRAGMA journal_mode = WAL")
    yield process
    process.communicate("")


def test_the_revision_is_read_while_another_writes(
    file: Path, held: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.session.LOCK_SECONDS", 0.0)  # one that waited would fail at once
    database = Database(file_url(file))
    schema.require_current(database)
    database.close()


def test_a_writers_error_names_the_process_that_holds_the_lock(
    file: Path, held: "subprocess.Popen[str]"
) -> None:
    database = Database(file_url(file))
    fault = write_fault(database)
    database.close()

    assert fault is not None
    assert f"{file} is locked" in fault
    assert f"{held.pid} (" in fault
    assert "cannot be reached" not in fault


def test_a_reader_of_a_locked_file_gets_the_same_sentence(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without WAL a writer keeps readers out, too, as a backup tool may."""
    monkeypatch.setattr("db.session.LOCK_SECONDS", 0.1)
    process = holding(file, "PRAGMA locking_mode = EXCLUSIVE")
    database = Database(file_url(file))
    try:
        with pytest.raises(DatabaseLocked) as raised:
            schema.require_current(database)
        with pytest.raises(OperationalError) as failed, database.read() as session:
            session.execute(text("SELECT 1"))
    finally:
        process.communicate("")
        database.close()
    assert f"{process.pid} (" in str(raised.value)
    assert f"{process.pid} (" in sentence_of(failed.value)


def test_a_database_that_takes_writes_has_no_fault_and_keeps_nothing_of_the_trial(
    database: Database,
) -> None:
    assert write_fault(database) is None
    with database.read() as session:
        assert session.execute(text("SELECT count(*) FROM batches")).scalar_one() == 0


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_database_that_cannot_grow_is_found_by_the_trial(database: Database) -> None:
    """The limit on a file's size fails a write as a full disk does."""
    assert database.file is not None
    program = (
        "import resource, signal, sys\n"
        "from cli.stack.write_trial import write_fault\n"
        "from db.session import Database\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, 2**19))\n"
        "print(write_fault(Database(sys.argv[1])))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, database.url.render_as_string()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "the database failed: " in ended.stdout
