"""The database session: its refusals, its error texts, and the guarantees of its transactions."""

import json
import logging
import os
import subprocess
import threading
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from db.connection.address import (
    RUN_FILE,
    STORES_FILE,
    AddressUnknown,
    database_url,
    killed_up,
    redis_url,
    running_up,
)
from db.errors import DatabaseError
from db.queries.jobs import submission
from db.session import Database, database_from_environment
from tests.samples.jobs import insert_job, job_row, states

USERS = "a secret of the user's"


def test_a_password_is_masked() -> None:
    shown = Database("postgresql://someone:secret@host/name").shown_url
    assert "secret" not in shown
    assert shown == "postgresql://someone:***@host/name"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("not a url", "cannot be read; it looks like postgresql://"),
        ("mysql://host/name", "'mysql'; Tidemill keeps its jobs in PostgreSQL or SQLite"),
        ("", "cannot be read"),
    ],
)
def test_another_url_is_refused_with_what_would_do(url: str, says: str) -> None:
    with pytest.raises(DatabaseError) as raised:
        Database(url)
    assert says in str(raised.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"nowhere.* does not exist; make it first"):
        _ = Database(f"sqlite:///{tmp_path}/nowhere/tidemill.db").engine


def test_no_address_is_refused_with_the_ways_to_give_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TIDEMILL_DATABASE_URL", raising=False)
    with pytest.raises(AddressUnknown, match=r"TIDEMILL_DATABASE_URL is not set.*tidemill up"):
        database_from_environment()


def test_a_running_up_in_the_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / ".tidemill").mkdir()
    (tmp_path / ".tidemill" / "run.json").write_text('{"database_url": "sqlite:////up.db"}')
    assert database_url({}, tmp_path) == "sqlite:////up.db"
    named = {"TIDEMILL_DATABASE_URL": "sqlite:////named.db"}
    assert database_url(named, tmp_path) == "sqlite:////named.db", "what is named goes first"


def test_an_up_that_was_killed_does_not_count_as_running(tmp_path: Path) -> None:
    (tmp_path / ".tidemill").mkdir()
    process = subprocess.Popen(["true"])
    process.wait()
    written = {"redis_url": "redis://of-the-killed", "pid": str(process.pid)}
    for name in (RUN_FILE, STORES_FILE):
        (tmp_path / ".tidemill" / name).write_text(json.dumps(written))
    assert running_up({}, tmp_path) == {}
    assert killed_up({}, tmp_path) == written
    assert redis_url({}, tmp_path) == "redis://of-the-killed", "jobs are kept as after a stop"
    written["pid"] = str(os.getpid())
    (tmp_path / ".tidemill" / RUN_FILE).write_text(json.dumps(written))
    assert running_up({}, tmp_path) == written
    assert killed_up({}, tmp_path) == {}


def refused(database: Database) -> SQLAlchemyError:
    """The error of a statement whose parameters hold a user's text."""
    rows = [job_row(custom_id=USERS, tenant=USERS, error_message=USERS, lane="no such lane")]
    with pytest.raises(IntegrityError) as raised, database.write() as session:
        submission.insert_jobs(session, rows)
    return raised.value


def test_an_error_does_not_show_the_users_text(database: Database) -> None:
    assert USERS not in str(refused(database))


def test_no_statement_is_logged_with_the_users_text(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        insert_job(database, custom_id=USERS)
        refused(database)
    assert USERS not in caplog.text


def insert_then_fail(database: Database) -> None:
    with database.write() as session:
        submission.insert_jobs(session, [job_row()])
        submission.insert_jobs(session, [job_row(lane="no such lane")])


def test_a_transaction_that_raises_changes_nothing(database: Database) -> None:
    with pytest.raises(IntegrityError):
        insert_then_fail(database)
    assert states(database) == {}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_sqlite_survives_a_power_cut_and_keeps_references(database: Database) -> None:
    with database.read() as session:
        told = {
            name: session.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert told == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_reader_of_sqlite_waits_for_no_writer(database: Database) -> None:
    insert_job(database)
    with database.write() as session:
        submission.insert_jobs(session, [job_row()])
        assert states(database) == {"queued": 1}
    assert states(database) == {"queued": 2}


def test_writers_that_come_together_all_get_through(database: Database) -> None:
    start, failed = threading.Barrier(8), []

    def write() -> None:
        start.wait()
        try:
            for _ in range(5):
                insert_job(database)
        except SQLAlchemyError as error:
            failed.append(error)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert states(database) == {"queued": 40}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_what_the_url_says_of_a_connection_goes_before_our_settings(database_url: str) -> None:
    """Else an operator's `options` would be dropped silently, and tables created elsewhere."""
    named = {"options": "-c search_path=ours -c statement_timeout=7s", "application_name": "theirs"}
    database = Database(make_url(database_url).update_query_dict(named))
    settings = ("search_path", "statement_timeout", "lock_timeout", "application_name")
    with database.read() as session:
        shown = [session.scalar(text(f"SHOW {name}")) for name in settings]
    database.close()
    assert shown == ["ours", "7s", "30s", "theirs"]
