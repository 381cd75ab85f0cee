"""Pruning: what goes, what stays, and that it is done in small transactions."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, event, func, select, update
from sqlalchemy.orm import Session
from sqlalchemy.pool import Pool
from uuid_utils.compat import uuid7

from db import find_job
from db.clock import seconds_from_now
from db.models import (
    AttemptRow,
    AuditEntry,
    CacheEntry,
    Job,
    Payload,
    QuarantinedMessage,
    Result,
    Segment,
)
from db.outcome import Answer, Outcome
from db.queries import inserts
from db.queries.jobs import cancel_retry, completion
from db.schema import migrate
from db.session import Database
from db.states import JobState
from db.upkeep import pruning
from db.upkeep.pruning import num_prunable, prune
from db.upkeep.retention import ROW_CLASSES, SHARED_CLASSES, Retention, seconds_until
from tests.samples.jobs import claim, insert_job, insert_jobs, job_row, set_columns, states
from worker.committer import attempt_row, result_row

DAY = 86_400.0


def finished(database: Database, days_ago: float = 0, **fields: Any) -> UUID:
    """A job that succeeded so long ago."""
    job_id = insert_job(database, metadata={"patient": "7"}, **fields)
    (fence,) = claim(database, [job_id])
    said = Answer(
        output="an answer",
        alternatives=("another",),
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=2,
        provenance={"settings": {"stop": ["secret"]}},
        reasoning="secret thought",
        reasoning_tokens=2,
        coverage={"parts": 1},
        left_out_characters=4,
    )
    outcome = Outcome.succeeded(fence, said)
    with database.write() as session:
        session.execute(completion.finish_attempts([outcome]))
        session.execute(completion.insert_results(), [result_row(outcome)])
    set_columns(database, [job_id], finished_at=seconds_from_now(-days_ago * DAY))
    return job_id


def failed(database: Database, days_ago: float = 0, **fields: Any) -> UUID:
    """A job that failed so long ago, with a segment and an attempt."""
    job_id = insert_job(database, **fields)
    (fence,) = claim(database, [job_id])
    outcome = Outcome.failed(fence, "engine_crash", "the engine died")
    with database.write() as session:
        session.execute(
            inserts.table(Segment).insert(),
            [{"job_id": job_id, "position": n, "output": {"n": n}} for n in range(2)],
        )
        session.execute(completion.finish_attempts([outcome]))
        session.execute(completion.insert_attempts(session), [attempt_row(outcome, None)])
    set_columns(database, [job_id], finished_at=seconds_from_now(-days_ago * DAY))
    return job_id


def at_once(database: Database, retention: Retention, **options: Any) -> dict[str, int]:
    return prune(database, retention, pause=lambda seconds: None, **options)


def row(database: Database, model: Any, job_id: UUID) -> Any:
    with database.read() as session:
        return session.scalars(select(model).where(model.job_id == job_id)).one()


def num_rows(database: Database, model: Any, job_id: UUID) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).where(model.job_id == job_id)) or 0


def test_texts_go_and_counts_stay(database: Database) -> None:
    old, new = finished(database, days_ago=31), finished(database, days_ago=29)
    retention = Retention(for_all={"payloads": 30 * DAY, "outputs": 30 * DAY})

    pruned = at_once(database, retention)

    assert (pruned["payloads"], pruned["outputs"]) == (1, 1)
    found = find_job(old, database=database)
    assert found is not None
    assert (found.state, found.output, found.alternatives) == (JobState.SUCCEEDED, None, ())
    assert (found.prompt_tokens, found.completion_tokens) == (3, 2)
    assert (found.finish_reason, found.left_out_characters) == ("stop", 4)
    assert found.pruned_at is not None
    assert found.metadata == {}
    assert row(database, Payload, old).contract == {}
    result = row(database, Result, old)
    assert (result.output, result.provenance, result.coverage) == ("", {}, None)
    assert (result.reasoning, result.reasoning_tokens) == (None, 2)
    kept = find_job(new, database=database)
    assert kept is not None
    assert (kept.output, kept.alternatives, kept.pruned_at) == ("an answer", ("another",), None)
    assert kept.metadata == {"patient": "7"}
    assert row(database, Payload, new).contract == {"text": "three words long"}


def test_a_job_is_found_by_its_metadata_while_it_has_a_text(database: Database) -> None:
    job_id = finished(database, days_ago=10)

    at_once(database, Retention(for_all={"payloads": 5 * DAY}))
    found = find_job(job_id, database=database)
    assert found is not None
    assert (found.output, found.metadata) == ("an answer", {"patient": "7"})
    assert (found.input_pruned_at, found.output_pruned_at) == (found.pruned_at, None)

    at_once(database, Retention(for_all={"outputs": 5 * DAY}))
    found = find_job(job_id, database=database)
    assert found is not None
    assert (found.output, found.metadata) == (None, {})


@pytest.mark.parametrize("left", ["segments", "refused outputs"])
def test_a_job_is_found_by_its_metadata_until_its_last_text_is_pruned(
    database: Database, left: str
) -> None:
    job_id = failed(database, days_ago=10, metadata={"patient": "7"})
    last = {"segments": Segment, "refused outputs": AttemptRow}[left]
    with database.write() as session:
        if last is AttemptRow:
            session.execute(delete(Segment))
            session.execute(update(AttemptRow).values(output="refused"))
    ages = {"segments": "segments", "refused outputs": "outputs"}
    texts = {"payloads", "outputs", "segments"} - {ages[left]}

    at_once(database, Retention(for_all=dict.fromkeys(texts, 5 * DAY)))
    found = find_job(job_id, database=database)
    assert found is not None
    assert found.metadata == {"patient": "7"}, "erasing by it would leave a text"

    pruned = at_once(database, Retention(for_all={ages[left]: 5 * DAY}))
    assert pruned[left] == (2 if left == "segments" else 1)
    found = find_job(job_id, database=database)
    assert found is not None
    assert found.metadata == {}


@pytest.fixture
def leaving_sqlite() -> Iterator[None]:
    """SQLite as most have it: what is deleted stays in the file until its place is needed."""

    def leave(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA secure_delete = OFF")

    event.listen(Pool, "connect", leave)  # before what a database asks of its own
    yield
    event.remove(Pool, "connect", leave)


def test_pruned_texts_are_overwritten_in_sqlite_s_file(
    tmp_path: Path, leaving_sqlite: None
) -> None:
    database = Database(f"sqlite:///{tmp_path}/x.db")
    migrate(database)
    old = [finished(database, days_ago=9) for _ in range(3)]
    text = "canary-4711 " * 900  # longer than a page
    with database.write() as session:
        session.execute(update(Payload).values(contract={"text": text}))
        session.execute(update(Result).values(output=text))
        parts = [{"job_id": old[0], "position": n, "output": {"n": text}} for n in range(3)]
        session.execute(inserts.table(Segment).insert(), parts)
    texts = ("payloads", "outputs", "segments")
    assert at_once(database, Retention(for_all=dict.fromkeys(texts, DAY)))["outputs"] == 3
    driver: Any = database.engine.raw_connection()
    driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    driver.close()
    database.close()
    assert "canary" not in (tmp_path / "x.db").read_text("latin-1")


def test_a_pass_that_is_killed_is_in_the_audit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "ROWS", 1)
    for _ in range(3):
        finished(database, days_ago=9)

    def look(name: str, num: int) -> None:
        with database.read() as session:  # what stays if the process ends here
            acts.append([(each.act, each.objects) for each in session.scalars(select(AuditEntry))])

    acts: list[list[Any]] = []
    at_once(database, Retention(for_all={"payloads": DAY}), on_pruned=look)
    assert acts[0][-1] == acts[2][-1] == ("prune", {"begun_with": "payloads"})


def test_a_tenant_s_age_goes_before_a_task_s_and_that_before_the_one_for_all(
    database: Database,
) -> None:
    ages = Retention(
        for_all={"payloads": 10 * DAY},
        by_task={"chat": {"payloads": 5 * DAY}, "generate": {"payloads": 50 * DAY}},
        by_tenant={"acme": {"payloads": 20 * DAY}},
    )
    kept = [
        finished(database, days_ago=4, task="chat"),
        finished(database, days_ago=8),
        finished(database, days_ago=30, task="generate"),
        finished(database, days_ago=15, tenant="acme"),
        finished(database, days_ago=15, tenant="acme", task="chat"),
    ]
    gone = [
        finished(database, days_ago=6, task="chat"),
        finished(database, days_ago=12),
        finished(database, days_ago=60, task="generate"),
        finished(database, days_ago=25, tenant="acme", task="generate"),
    ]

    assert num_prunable(database, ages)["payloads"] == len(gone)
    assert at_once(database, ages)["payloads"] == len(gone)

    assert [row(database, Payload, each).contract for each in gone] == [{}] * len(gone)
    assert all(row(database, Payload, each).contract for each in kept)


def test_an_age_for_one_tenant_only_leaves_the_others(database: Database) -> None:
    theirs, ours = finished(database, days_ago=9, tenant="acme"), finished(database, days_ago=9)

    at_once(database, Retention(by_tenant={"acme": {"outputs": DAY}}))

    assert row(database, Result, theirs).output == ""
    assert row(database, Result, ours).output == "an answer"


@pytest.mark.parametrize("row_class", sorted(set(ROW_CLASSES) - set(SHARED_CLASSES)))
@pytest.mark.parametrize("by", ["task", "tenant"])
def test_every_class_may_have_an_age_for_some_only(
    database: Database, row_class: str, by: str
) -> None:
    """What is nobody's own, as a message that could not be taken, then stays."""
    theirs = finished(database, days_ago=9, tenant="acme", task="chat")
    ours = finished(database, days_ago=9)
    with database.write() as session:
        message = {"id": uuid7(), "arrived_at": seconds_from_now(-9 * DAY), "queue": "celery"}
        message |= {"reason": "not_json", "num_bytes": 1, "body": b"x"}
        session.execute(inserts.table(QuarantinedMessage).insert().values(message))
    ages = {"acme" if by == "tenant" else "chat": {row_class: DAY}}
    retention = Retention(**{f"by_{by}": ages})

    due = num_prunable(database, retention)
    assert at_once(database, retention) == due
    assert due["messages"] == 0

    is_pruned = {"payloads": Payload, "outputs": Result}
    for class_, model in is_pruned.items():
        assert (row(database, model, theirs).pruned_at is not None) == (class_ == row_class)
        assert row(database, model, ours).pruned_at is None


@pytest.mark.parametrize("state", ["queued", "running"])
def test_an_unfinished_job_is_never_pruned(database: Database, state: str) -> None:
    job_id = insert_job(database)
    if state == "running":
        claim(database, [job_id])
    with database.write() as session:
        session.execute(
            inserts.table(Segment).insert(), [{"job_id": job_id, "position": 0, "output": {}}]
        )
    ages = dict.fromkeys(("payloads", "outputs", "segments", "attempts"), 0.0)

    assert not any(at_once(database, Retention(for_all=ages)).values())

    assert row(database, Payload, job_id).contract
    assert num_rows(database, Segment, job_id) == 1


def test_segments_attempts_and_messages_are_deleted(database: Database) -> None:
    old, new = failed(database, days_ago=3), failed(database)
    messages = [uuid7(), uuid7()]
    with database.write() as session:
        session.execute(
            inserts.table(QuarantinedMessage).insert(),
            [
                {
                    "id": message,
                    "arrived_at": datetime.fromisoformat(f"{year}-01-31T00:00:00+00:00"),
                    "queue": "celery",
                    "reason": "not_json",
                    "num_bytes": 1,
                    "body": b"x",
                }
                for message, year in zip(messages, (2001, 2999), strict=True)
            ],
        )
        session.execute(
            inserts.table(CacheEntry).insert(),
            [
                {
                    "key": bytes([year % 100]) * 32,
                    "output": b"x",
                    "num_bytes": 1,
                    "created_at": datetime.fromisoformat(f"{year}-01-31T00:00:00+00:00"),
                    "used_at": datetime.fromisoformat("2999-01-31T00:00:00+00:00"),
                }
                for year in (2001, 2999)
            ],
        )
    ages = dict.fromkeys(("payloads", "segments", "attempts", "cache"), 2 * DAY)

    pruned = at_once(database, Retention(for_all=ages))

    assert pruned == {
        "payloads": 1,
        "outputs": 0,
        "refused outputs": 0,
        "segments": 2,
        "attempts": 1,
        "cached answers": 1,
        "messages": 1,
        "audit entries": 0,
    }
    assert [num_rows(database, Segment, each) for each in (old, new)] == [0, 2]
    assert [num_rows(database, AttemptRow, each) for each in (old, new)] == [0, 1]
    with database.read() as session:
        assert list(session.scalars(select(QuarantinedMessage.id))) == messages[1:]


def test_a_job_without_its_text_is_not_put_back_in_line(database: Database) -> None:
    job_id = failed(database, days_ago=2)
    at_once(database, Retention(for_all={"payloads": DAY}))

    with database.write() as session:
        retried = session.scalars(cancel_retry.retry_jobs(Job.id == job_id, [JobState.FAILED]))
        assert retried.all() == []
    assert states(database) == {"failed": 1}


def test_a_job_that_is_put_back_in_line_after_its_page_was_read_keeps_its_text(
    database: Database,
) -> None:
    job_id = failed(database, days_ago=2)
    retention = Retention(for_all={"payloads": DAY, "segments": DAY})

    with retried_after_the_first_read(database, job_id):
        pruned = at_once(database, retention)

    assert (pruned["payloads"], pruned["segments"]) == (0, 0)
    assert row(database, Payload, job_id).contract
    assert num_rows(database, Segment, job_id) == 2


@contextmanager
def retried_after_the_first_read(database: Database, job_id: UUID) -> Iterator[None]:
    pages: list[object] = []
    read = Database.read

    @contextmanager
    def retrying(self: Database) -> Iterator[Session]:
        with read(self) as session:
            yield session
        pages.append(session)
        if len(pages) == 1:
            with database.write() as session:
                retry = cancel_retry.retry_jobs(Job.id == job_id, [JobState.FAILED])
                assert session.scalars(retry).all() == [job_id]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "read", retrying)
        yield
    assert pages


def test_pruning_goes_by_key_in_small_transactions_and_can_be_interrupted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "PAGE", 20)
    monkeypatch.setattr(pruning, "ROWS", 10)
    waiting = insert_jobs(database, [job_row() for _ in range(45)])  # two pages and a bit
    old = insert_jobs(database, [job_row() for _ in range(35)])
    set_columns(database, old, state=JobState.CANCELLED, finished_at=seconds_from_now(-DAY))
    retention = Retention(for_all={"payloads": 0.0})
    parts: list[int] = []

    def record(name: str, num: int) -> None:
        parts.append(num)

    first = at_once(database, retention, on_pruned=record, is_ended=lambda: len(parts) == 2)
    assert (first["payloads"], parts) == (15, [10, 5])
    at_once(database, retention, on_pruned=record)
    assert parts == [10, 5, 10, 5, 5]
    assert num_prunable(database, retention)["payloads"] == 0
    assert all(row(database, Payload, each).contract for each in waiting)


def test_a_dry_run_changes_nothing(database: Database) -> None:
    job_id = failed(database, days_ago=2)
    retention = Retention(for_all={"payloads": DAY, "segments": DAY, "audit": DAY})

    due = num_prunable(database, retention)

    assert (due["payloads"], due["segments"]) == (1, 2)
    assert row(database, Payload, job_id).contract


@pytest.mark.parametrize(
    ("state", "share"), [("running", pruning.SHARE), ("succeeded", pruning.IDLE_SHARE)]
)
def test_the_pass_leaves_the_database_to_the_jobs_for_most_of_the_time(
    database: Database, monkeypatch: pytest.MonkeyPatch, state: str, share: float
) -> None:
    is_over = state == "succeeded"
    insert_job(database, state=state, finished_at=seconds_from_now(0) if is_over else None)
    failed(database, days_ago=2)
    clock = iter(range(100))
    monkeypatch.setattr(pruning.time, "monotonic", lambda: 0.005 * next(clock))
    pauses: list[float] = []

    prune(database, Retention(for_all={"payloads": DAY}), pause=pauses.append)

    assert pauses == [pytest.approx(0.005 * (1 / share - 1))]


def test_seconds_until_a_time_of_day() -> None:
    noon = datetime(2026, 11, 29, 12)
    assert seconds_until(time(12, 30), noon) == 1800
    assert seconds_until(time(11), noon) == 23 * 3600
    assert seconds_until(time(12), noon) == 24 * 3600
