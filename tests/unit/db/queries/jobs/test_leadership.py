"""One worker at a time holds a leadership."""

import threading

import pytest
from sqlalchemy import update

from db.clock import seconds_from_now
from db.models import Leadership
from db.queries.jobs import dispatch
from db.session import Database


def lead(database: Database, leader: str) -> bool:
    with database.write() as session:
        return dispatch.lead(session, "dispatcher", leader, 10)


def test_a_leader_leads_until_it_resigns(database: Database) -> None:
    assert lead(database, "one")
    assert not lead(database, "two")
    assert lead(database, "one"), "a leader keeps the leadership"
    with database.write() as session:
        session.execute(dispatch.resign("dispatcher", "two"))
    assert not lead(database, "two"), "nobody resigns for another"
    with database.write() as session:
        session.execute(dispatch.resign("dispatcher", "one"))
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
        assert dispatch.lead(session, "janitor", "two", 10)


@pytest.mark.parametrize("after_another", [False, True])
def test_one_of_many_simultaneous_candidates_leads(database: Database, after_another: bool) -> None:
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
