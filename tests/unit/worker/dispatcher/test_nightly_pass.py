"""The nightly pass: one worker of all runs it, once a night; if it fails, another continues."""

from collections.abc import Callable
from datetime import datetime, time

import pytest
from sqlalchemy import update

from db import find_job
from db.clock import seconds_from_now
from db.models import Leadership
from db.session import Database
from db.states import JobState
from db.upkeep.retention import Retention
from tests.samples.jobs import insert_job
from worker.dispatcher import nightly_pass
from worker.dispatcher.nightly_pass import NIGHTLY, NightlyPass

AT_ONCE = Retention(for_all={"payloads": 0.0}, at=time(3))


def make(database: Database, owner: str = "one", leads: bool = True) -> NightlyPass:
    return NightlyPass(database, owner, AT_ONCE, lambda: leads, lambda: datetime(2026, 11, 29, 14))


def old_job(database: Database) -> Callable[[], bool]:
    """A job that is due; the function tells whether it was pruned."""
    job_id = insert_job(database, state=JobState.CANCELLED, finished_at=seconds_from_now(-60))

    def is_pruned() -> bool:
        found = find_job(job_id, database=database)
        assert found is not None
        return found.pruned_at is not None

    return is_pruned


def let_it_be_night(database: Database) -> None:
    with database.write() as session:
        session.execute(
            update(Leadership).where(Leadership.name == NIGHTLY).values(until=seconds_from_now(-1))
        )


def seconds_left(database: Database) -> float:
    with database.read() as session:
        row = session.get_one(Leadership, NIGHTLY)
        return (row.until - datetime.now(row.until.tzinfo)).total_seconds()


def test_the_first_night_is_the_next_and_a_pass_is_made_once(database: Database) -> None:
    nightly = make(database)
    is_pruned = old_job(database)
    nightly.tick()
    assert not is_pruned()
    assert seconds_left(database) == pytest.approx(13 * 3600, abs=60)

    let_it_be_night(database)
    nightly.tick()
    assert is_pruned()
    assert seconds_left(database) == pytest.approx(13 * 3600, abs=60)

    is_pruned = old_job(database)
    nightly.tick()
    make(database, "two").tick()
    assert not is_pruned()


def test_only_the_leader_makes_a_pass(database: Database) -> None:
    make(database).tick()
    is_pruned = old_job(database)
    let_it_be_night(database)

    make(database, "two", leads=False).tick()
    assert not is_pruned()


def test_two_leaders_make_one_nightly_pass(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(database).tick()
    let_it_be_night(database)
    passes = []

    def prune(*_: object, **__: object) -> dict[str, int]:
        passes.append(1)
        make(database, "two").tick()
        return {}

    monkeypatch.setattr(nightly_pass, "prune", prune)
    make(database).tick()
    assert passes == [1]


def test_a_pass_that_is_stopped_is_taken_up_by_another(database: Database) -> None:
    first = make(database)
    first.tick()
    is_pruned = old_job(database)
    let_it_be_night(database)
    first.stop()  # before it has pruned a row
    first.tick()
    assert not is_pruned()

    make(database, "two").tick()
    assert is_pruned()


def test_a_pass_of_a_dead_worker_is_taken_up_when_its_row_runs_out(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(database).tick()
    is_pruned = old_job(database)
    let_it_be_night(database)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(nightly_pass, "prune", die)
        with pytest.raises(KeyboardInterrupt):
            make(database).tick()
    make(database, "two").tick()
    assert not is_pruned()
    assert 0 < seconds_left(database) <= nightly_pass.PASS_SECONDS

    let_it_be_night(database)
    make(database, "two").tick()
    assert is_pruned()
