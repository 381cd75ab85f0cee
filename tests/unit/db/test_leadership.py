"""One leads at a time; and who lives is known."""

import threading

import pytest
from sqlalchemy import update

from db import queries
from db.clock import seconds_from_now
from db.models import Leadership, WorkerRow
from db.session import Database


def lead(database: Database, leader: str) -> bool:
    with database.write() as session:
        return queries.lead(session, "dispatcher", leader, 10)


def test_one_leads_until_it_resigns(database: Database) -> None:
    assert lead(database, "one")
    assert not lead(database, "two")
    assert lead(database, "one"), "a leader keeps the leadership"
    with database.write() as session:
        session.execute(queries.resign("dispatcher", "two"))
    assert not lead(database, "two"), "nobody resigns for another"
    with database.write() as session:
        session.execute(queries.resign("dispatcher", "one"))
    assert lead(database, "two")


def test_a_leadership_that_was_not_kept_goes_to_another(database: Database) -> None:
    assert lead(database, "one")
    with database.write() as session:
        session.execute(update(Leadership).values(until=seconds_from_now(-1)))
    assert lead(database, "two")
    assert not lead(database, "one")


def test_leaderships_are_apart_by_name(database: Database) -> None:
    assert lead(database, "one")
    with database.write() as session:
        assert queries.lead(session, "janitor", "two", 10)


@pytest.mark.parametrize("after_another", [False, True])
def test_of_many_that_try_at_once_one_leads(database: Database, after_another: bool) -> None:
    if after_another:
        assert lead(database, "dead")
        with database.write() as session:
            session.execute(update(Leadership).values(until=seconds_from_now(-1)))
    start, leaders = threading.Barrier(6), []

    def run(name: str) -> None:
        start.wait()
        if lead(database, name):
            leaders.append(name)

    threads = [threading.Thread(target=run, args=[str(number)]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(leaders) == 1


def workers(database: Database) -> dict[str, dict[str, int]]:
    with database.read() as session:
        return {row.name: row.room for row in session.scalars(queries.live_workers())}


def test_a_worker_that_reports_is_alive(database: Database) -> None:
    with database.write() as session:
        queries.report_worker(session, "one", {"reports": 64}, 3, 60)
        queries.report_worker(session, "two", {"reports": 8}, 0, 60)
    with database.write() as session:
        queries.report_worker(session, "two", {"reports": 8, "opus": 4}, 1, 60)
    assert workers(database) == {"one": {"reports": 64}, "two": {"reports": 8, "opus": 4}}


def test_a_worker_that_is_silent_is_not_alive(database: Database) -> None:
    with database.write() as session:
        queries.report_worker(session, "one", {}, 0, 60)
        queries.report_worker(session, "two", {}, 0, 60)
        silent = update(WorkerRow).where(WorkerRow.name == "one")
        session.execute(silent.values(alive_until=seconds_from_now(-1)))
    assert set(workers(database)) == {"two"}


def test_a_worker_that_signs_off_takes_the_dead_with_it(database: Database) -> None:
    with database.write() as session:
        for name in ("one", "two", "three"):
            queries.report_worker(session, name, {}, 0, 60)
        dead = update(WorkerRow).where(WorkerRow.name == "one")
        session.execute(dead.values(alive_until=seconds_from_now(-1)))
        session.execute(queries.forget_worker("two"))
        assert list(session.scalars(WorkerRow.__table__.select())) == ["three"]
