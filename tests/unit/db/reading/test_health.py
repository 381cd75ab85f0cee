"""The database shows which workers live, their jobs, and overdue work."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import update

from db.clock import seconds_from_now
from db.lane import Lane
from db.models import WorkerRow
from db.queries import worker_registry
from db.queries.jobs import dispatch
from db.reading.health import Overdue, health
from db.session import Database
from tests.samples.jobs import claimed_job, insert_job, set_columns

LONG_AGO = seconds_from_now(-3600)


def live(database: Database, *names: str) -> None:
    with database.write() as session:
        for name in names:
            worker_registry.report_worker(session, name, {"reports": 64}, 0, 60)


def test_a_worker_is_shown_with_what_it_serves_and_holds(database: Database) -> None:
    live(database, "one", "two")
    with database.write() as session:
        assert dispatch.lead(session, "dispatcher", "two", 10)
    old, young = claimed_job(database, "one"), claimed_job(database, "one")
    set_columns(database, [old.job_id], started_at=seconds_from_now(-100))
    set_columns(database, [young.job_id], started_at=seconds_from_now(-10))

    found = health(database)

    one, two = found.workers
    assert (one.name, one.lives, one.leads, one.models) == ("one", True, False, ("reports",))
    assert one.num_held == 2
    assert one.oldest_seconds is not None
    assert 100 <= one.oldest_seconds < 110
    assert (two.name, two.leads, two.num_held, two.oldest_seconds) == ("two", True, 0, None)
    assert found.alive == [one, two]
    assert not found.overdue


def test_a_dead_worker_is_shown_as_long_as_it_holds_something(database: Database) -> None:
    live(database, "one", "two")
    claimed_job(database, "two")
    with database.write() as session:
        session.execute(update(WorkerRow).values(alive_until=seconds_from_now(-1)))

    found = health(database)

    (dead,) = found.workers
    assert (dead.name, dead.lives, dead.num_held) == ("two", False, 1)
    assert found.alive == []


def test_overdue_jobs_are_reported(database: Database) -> None:
    live(database, "one")
    left = claimed_job(database)
    set_columns(database, [left.job_id], lease_until=LONG_AGO)
    insert_job(database, deadline=datetime.now(UTC) - timedelta(hours=1))
    insert_job(database, lane=Lane.INTERACTIVE, created_at=LONG_AGO)
    insert_job(database, lane=Lane.INTERACTIVE, created_at=LONG_AGO, published_at=LONG_AGO)
    assert health(database).overdue == Overdue(num_left=1, num_past_deadline=1, num_waiting=2)


def test_a_job_that_waits_for_a_reason_is_not_overdue(database: Database) -> None:
    live(database, "one")
    claimed_job(database)
    insert_job(database, created_at=LONG_AGO)  # a bulk job may wait for its turn
    insert_job(database, deadline=datetime.now(UTC) + timedelta(hours=1))
    insert_job(database, lane=Lane.INTERACTIVE)
    later = {"not_before": seconds_from_now(60), "created_at": LONG_AGO}
    insert_job(database, lane=Lane.INTERACTIVE, **later)
    insert_job(database, lane=Lane.INTERACTIVE, model="unserved", created_at=LONG_AGO)
    assert not health(database).overdue
