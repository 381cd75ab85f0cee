"""The registry knows which workers live and how many jobs each wants."""

from sqlalchemy import update

from db.clock import seconds_from_now
from db.models import WorkerRow
from db.queries import worker_registry
from db.session import Database


def workers(database: Database) -> dict[str, dict[str, int]]:
    with database.read() as session:
        return {row.name: row.room for row in session.scalars(worker_registry.live_workers())}


def test_a_worker_that_reports_is_alive(database: Database) -> None:
    with database.write() as session:
        worker_registry.report_worker(session, "one", {"reports": 64}, 3, 60)
        worker_registry.report_worker(session, "two", {"reports": 8}, 0, 60)
    with database.write() as session:
        worker_registry.report_worker(session, "two", {"reports": 8, "opus": 4}, 1, 60)
    assert workers(database) == {"one": {"reports": 64}, "two": {"reports": 8, "opus": 4}}


def test_a_worker_that_is_silent_is_not_alive(database: Database) -> None:
    with database.write() as session:
        worker_registry.report_worker(session, "one", {}, 0, 60)
        worker_registry.report_worker(session, "two", {}, 0, 60)
        silent = update(WorkerRow).where(WorkerRow.name == "one")
        session.execute(silent.values(alive_until=seconds_from_now(-1)))
    assert set(workers(database)) == {"two"}


def test_a_worker_that_signs_off_takes_the_dead_with_it(database: Database) -> None:
    with database.write() as session:
        for name in ("one", "two", "three"):
            worker_registry.report_worker(session, name, {}, 0, 60)
        dead = update(WorkerRow).where(WorkerRow.name == "one")
        session.execute(dead.values(alive_until=seconds_from_now(-1)))
        session.execute(worker_registry.forget_worker("two"))
        assert list(session.scalars(WorkerRow.__table__.select())) == ["three"]
