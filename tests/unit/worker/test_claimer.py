"""Deliveries become claimed jobs; jobs that cannot be claimed are settled at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from uuid_utils.compat import uuid7

from db.session import Database
from db.states import JobState
from tests.running.workers import PATIENCE_SECONDS
from tests.samples.jobs import claimed_job, insert_job, insert_jobs, job, job_row
from worker.claimer import ClaimedJob, Claimer
from worker.delivery import Delivery
from worker.settings import Settings


@dataclass
class Started:
    """Records the started attempts."""

    jobs: list[ClaimedJob] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, claimed: list[ClaimedJob]) -> None:
        with self.changed:
            self.jobs += claimed
            self.changed.notify_all()

    def wait_for(self, number: int) -> list[UUID]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.jobs) >= number, PATIENCE_SECONDS)
            return [claimed.fence.job_id for claimed in self.jobs]


@contextmanager
def claiming(database: Database) -> Iterator[tuple[Claimer, Started]]:
    started = Started()
    claimer = Claimer(database, "one", Settings(), started.add)
    claimer.start()
    yield claimer, started
    claimer.stop()


def test_a_delivery_becomes_its_jobs(database: Database) -> None:
    ids = insert_jobs(database, [job_row(time_limit_seconds=7.0), job_row()])
    settled = threading.Event()
    with claiming(database) as (claimer, started):
        delivery = Delivery(ids, settled.set)
        claimer.put(delivery)
        assert sorted(started.wait_for(2)) == sorted(ids)
    first = next(each for each in started.jobs if each.fence.job_id == ids[0])
    assert (first.fence.attempt, first.fence.owner, first.time_limit_seconds) == (1, "one", 7.0)
    assert (first.task, first.model, first.num_failures) == ("summarize", "reports", 0)
    assert first.contract == {"text": "three words long"}
    assert first.delivery is delivery
    assert not settled.is_set(), "its jobs are not done"


def test_a_row_whose_traceparent_is_none_is_a_job_like_any_other(database: Database) -> None:
    good = f"00-{'a' * 32}-{'b' * 16}-01"
    ids = insert_jobs(
        database, [job_row(traceparent=each) for each in ("garbage", "00-x-y-z", "", good)]
    )
    with claiming(database) as (claimer, started):
        claimer.put(Delivery(ids, lambda: None))
        started.wait_for(4)
    traces = {each.fence.job_id: each.ids().get("trace_id") for each in started.jobs}
    assert [traces[each] for each in ids] == [None, None, None, "a" * 32]


def test_ids_that_cannot_be_claimed_are_settled_at_once(database: Database) -> None:
    ids = [
        insert_job(database, state=JobState.SUCCEEDED),
        insert_job(database, state=JobState.CANCELLED),
        claimed_job(database, owner="two").job_id,
        uuid7(),
    ]
    settled = threading.Event()
    with claiming(database) as (claimer, started):
        claimer.put(Delivery(ids, settled.set))
        assert settled.wait(PATIENCE_SECONDS)
    assert started.jobs == []


def test_a_job_that_two_messages_name_is_run_for_one_of_them(database: Database) -> None:
    job_id = insert_job(database)
    settled = [threading.Event(), threading.Event()]
    with claiming(database) as (claimer, started):
        deliveries = [Delivery([job_id], each.set) for each in settled]
        for delivery in deliveries:
            claimer.put(delivery)
        assert settled[1].wait(PATIENCE_SECONDS), "the second has nothing to do"
        assert started.wait_for(1) == [job_id]
    assert started.jobs[0].delivery is deliveries[0]
    assert not settled[0].is_set()
    assert job(database, job_id).attempt == 1


def test_while_the_database_is_away_deliveries_wait(database: Database) -> None:
    job_id = insert_job(database)
    noticed, settled = threading.Event(), threading.Event()

    def refuse(*_: object) -> None:
        noticed.set()
        raise OperationalError("BEGIN", {}, Exception("the database is away"))

    event.listen(database.engine, "begin", refuse)
    try:
        with claiming(database) as (claimer, started):
            claimer.put(Delivery([job_id], settled.set))
            assert noticed.wait(PATIENCE_SECONDS)
            assert started.jobs == []
            event.remove(database.engine, "begin", refuse)
            assert started.wait_for(1) == [job_id]
    finally:
        if event.contains(database.engine, "begin", refuse):
            event.remove(database.engine, "begin", refuse)
    assert not settled.is_set()


def test_nothing_is_claimed_while_it_must_wait_and_a_stop_ends_the_wait(
    database: Database,
) -> None:
    first, second = insert_job(database), insert_job(database)
    is_full, looked = threading.Event(), threading.Event()
    is_full.set()

    def must_wait() -> bool:
        looked.set()
        return is_full.is_set()

    started = Started()
    claimer = Claimer(database, "one", Settings(), started.add, must_wait)
    claimer.start()
    claimer.put(Delivery([first], lambda: None))
    assert looked.wait(PATIENCE_SECONDS)
    assert job(database, first).state == JobState.QUEUED
    is_full.clear()
    assert started.wait_for(1) == [first]
    is_full.set()
    looked.clear()
    claimer.put(Delivery([second], lambda: None))
    assert looked.wait(PATIENCE_SECONDS)
    claimer.stop()
    assert job(database, second).state == JobState.QUEUED


def test_after_a_stop_nothing_is_claimed_or_settled(database: Database) -> None:
    job_id = insert_job(database)
    settled = threading.Event()
    with claiming(database) as (claimer, started):
        pass
    claimer.put(Delivery([job_id], settled.set))
    assert (started.jobs, settled.is_set()) == ([], False)
    assert job(database, job_id).state == JobState.QUEUED
