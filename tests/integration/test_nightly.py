"""A night is enqueued once, whatever it is made of and wherever it broke off."""

import sqlite3

from db.session import Database
from tests.commands import InProcess, ids


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
