"""A model card is stored once, results refer to it, and readers see it as part of each result."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from threading import Event
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, event, func, insert, inspect, select

from db import schema
from db.models import ModelCardRow, Result
from db.outcome import Answer, Outcome
from db.queries.model_cards import model_card_id
from db.reading.job_details import find_details
from db.session import Database
from tests.samples.jobs import claimed_job, insert_jobs, job_row
from worker.committer import Committer
from worker.settings import Settings

CARD = {"alias": "fr", "revision": "1f3a", "device": "cpu", "versions": {"torch": "2.9", "a": "1"}}


def answer(seed: int, card: dict[str, Any] | None) -> Answer:
    return Answer(
        output="le moulin",
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=2,
        provenance={"settings": {"seed": seed}},
        model_card=card,
    )


def test_a_card_that_was_changed_is_another() -> None:
    card = {**CARD, "versions": dict(CARD["versions"])}
    first = model_card_id(card)
    assert first == model_card_id(dict(reversed(CARD.items())))
    card["versions"]["torch"] = "3.0"
    assert model_card_id(card) != first
    assert model_card_id(CARD) == first


def commit(database: Database, answers: list[Answer]) -> list[UUID]:
    """Write one answer to each new job, in a flush of its own; returns the jobs' ids."""
    job_ids = []
    written = Event()
    committer = Committer(
        database, Settings(flush_outcomes=1), on_written=lambda outcomes: written.set()
    )
    committer.start()
    try:
        for each in answers:
            fence = claimed_job(database)
            written.clear()
            committer.put(Outcome.succeeded(fence, each), is_urgent=True)
            assert written.wait(30)
            job_ids.append(fence.job_id)
    finally:
        committer.stop()
    return job_ids


def cards(database: Database) -> dict[UUID, dict[str, Any]]:
    with database.read() as session:
        return {row.id: row.content for row in session.scalars(select(ModelCardRow))}


def test_the_id_of_a_card_is_of_its_content_in_any_order() -> None:
    backwards = {name: CARD[name] for name in reversed(CARD)}
    backwards["versions"] = {"a": "1", "torch": "2.9"}
    assert model_card_id(backwards) == model_card_id(CARD)
    assert model_card_id({**CARD, "device": "cuda"}) != model_card_id(CARD)


def test_results_of_one_model_share_a_card_that_readers_find_with_each(database: Database) -> None:
    other = {**CARD, "revision": "77aa"}
    first, second, third, without = commit(
        database, [answer(1, CARD), answer(2, dict(CARD)), answer(3, other), answer(4, None)]
    )
    assert cards(database) == {model_card_id(CARD): CARD, model_card_id(other): other}

    def provenance(job_id: UUID) -> dict[str, Any]:
        details = find_details(job_id, database=database)
        assert details is not None
        assert details.provenance is not None
        return dict(details.provenance)

    assert provenance(first) == {**CARD, "settings": {"seed": 1}}
    assert provenance(second) == {**CARD, "settings": {"seed": 2}}
    assert provenance(third) == {**other, "settings": {"seed": 3}}
    assert provenance(without) == {"settings": {"seed": 4}}
    with database.read() as session:
        kept = session.scalars(select(Result.provenance).where(Result.job_id == first)).one()
    assert kept == {"settings": {"seed": 1}}, "the row holds what is this answer's alone"


def test_two_workers_that_loaded_the_same_model_write_one_card(database: Database) -> None:
    for _ in range(2):  # a committer each
        commit(database, [answer(1, CARD)])
    assert list(cards(database)) == [model_card_id(CARD)]


def old_result(job_id: UUID, provenance: dict[str, Any]) -> dict[str, Any]:
    """A result as a worker of revision 0003 writes it."""
    return {
        "job_id": job_id,
        "output": "le moulin",
        "alternatives": [],
        "finish_reason": "stop",
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "provenance": provenance,
    }


def insert_old_results(database: Database, num: int) -> list[UUID]:
    job_ids = insert_jobs(database, [job_row(state="succeeded") for _ in range(num)])
    rows = [old_result(job_id, full(number)) for number, job_id in enumerate(job_ids)]
    with database.write() as session:
        session.execute(insert(Result.__table__), rows)
    return job_ids


def full(number: int) -> dict[str, Any]:
    """The provenance of a result before cards were stored apart, for one of two models."""
    return {**CARD, "revision": f"{number % 2}", "settings": {"seed": number}}


def found_provenances(database: Database, job_ids: list[UUID]) -> list[Any]:
    found = (find_details(job_id, database=database) for job_id in job_ids)
    return [each and each.provenance for each in found]


def test_existing_cards_move_and_readers_see_no_difference(empty_database: Database) -> None:
    schema.migrate(empty_database, "0003")
    job_ids = insert_old_results(empty_database, 1203)
    schema.migrate(empty_database)

    sample = [0, 1, 499, 500, 999, 1000, 1202]
    assert found_provenances(empty_database, [job_ids[each] for each in sample]) == [
        full(each) for each in sample
    ]
    assert len(cards(empty_database)) == 2
    with empty_database.read() as session:
        kept = dict(session.execute(select(Result.job_id, Result.provenance)).all())
    assert [kept[job_id] for job_id in job_ids] == [
        {"settings": {"seed": number}} for number in range(1203)
    ]


def test_the_rows_move_some_hundred_at_a_time_beside_an_old_worker(
    empty_database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of the revision before writes between two transactions, unhindered."""
    schema.migrate(empty_database, "0003")
    job_ids = insert_old_results(empty_database, 1203)
    (late,) = insert_jobs(empty_database, [job_row(state="succeeded")])
    old_worker = Database(database_url)
    moved: list[int] = []

    def between_transactions() -> None:
        with old_worker.read() as session:
            if "model_cards" not in inspect(session.connection()).get_table_names():
                return
            num_moved = session.scalar(
                select(func.count()).where(Result.model_card_id.is_not(None))
            )
        if not moved:
            with old_worker.write() as session:
                session.execute(insert(Result.__table__), [old_result(late, full(7))])
        moved.append(num_moved or 0)

    transaction = schema._migrating

    @contextmanager
    def after_an_old_worker(database: Database) -> Iterator[Connection]:
        between_transactions()
        with transaction(database) as connection:
            yield connection

    monkeypatch.setattr(schema, "_migrating", after_an_old_worker)
    with closing(old_worker):
        schema.migrate(empty_database)

    steps = [after - before for before, after in pairwise(moved)]
    assert max(steps) <= 500
    assert sum(steps) >= 1203 - 500
    assert found_provenances(empty_database, [late, job_ids[1202]]) == [full(7), full(1202)]


def test_what_an_old_worker_writes_after_the_migration_is_read_whole(database: Database) -> None:
    (job_id,) = insert_old_results(database, 1)
    assert found_provenances(database, [job_id]) == [full(0)]


def test_a_migration_that_is_interrupted_goes_on_where_it_was(empty_database: Database) -> None:
    schema.migrate(empty_database, "0003")
    job_ids = insert_old_results(empty_database, 1203)
    num_updates = 0

    def fail_in_the_second_batch(_connection, _cursor, statement, *_: object) -> None:
        nonlocal num_updates
        num_updates += statement.startswith("UPDATE results")
        if num_updates == 2:
            raise KeyboardInterrupt

    event.listen(empty_database.engine, "before_cursor_execute", fail_in_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        schema.migrate(empty_database)
    event.remove(empty_database.engine, "before_cursor_execute", fail_in_the_second_batch)
    assert schema.revision(empty_database) == "0004"
    with empty_database.read() as session:
        moved = session.scalar(select(func.count()).where(Result.model_card_id.is_not(None)))
    assert moved == 500, "what was committed stays"

    assert schema.migrate(empty_database) == ("0004", schema.head())
    assert found_provenances(empty_database, [job_ids[0], job_ids[1202]]) == [full(0), full(1202)]


def test_each_transaction_of_a_migration_limits_how_long_it_waits(
    empty_database: Database,
) -> None:
    if empty_database.dialect != "postgresql":
        return  # SQLite has one writer; the connection's busy_timeout limits the wait
    schema.migrate(empty_database, "0003")
    insert_old_results(empty_database, 501)
    transactions: list[list[str]] = []
    event.listen(empty_database.engine, "begin", lambda _: transactions.append([]))

    @event.listens_for(empty_database.engine, "before_cursor_execute")
    def record(_connection, _cursor, statement, *_: object) -> None:
        transactions[-1].append(statement)

    schema.migrate(empty_database)
    writing = [each for each in transactions if any("UPDATE results" in line for line in each)]
    assert len(writing) == 2
    altering = [each for each in transactions if any("ALTER TABLE" in line for line in each)]
    assert altering
    for statements in writing + altering:
        assert any("lock_timeout" in line for line in statements)
        assert any("statement_timeout" in line for line in statements)


def test_a_way_back_puts_the_cards_into_the_rows_again(empty_database: Database) -> None:
    schema.migrate(empty_database, "0003")
    job_ids = insert_old_results(empty_database, 503)
    schema.migrate(empty_database)
    schema.migrate(empty_database, "0003")
    with empty_database.read() as session:
        kept = dict(session.execute(select(Result.job_id, Result.provenance)).all())
    assert [kept[job_id] for job_id in job_ids] == [full(number) for number in range(503)]
