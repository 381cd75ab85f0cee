"""Running attempts keep their leases; an attempt that has lost its job is told so."""

import time
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from db.clock import seconds_from_now
from db.models import Job
from db.outcome import Fence, Outcome
from db.queries import worker_registry
from db.queries.jobs import cancel_retry, completion, dispatch, leases
from db.session import Database
from db.states import JobState
from engine.protocol.engine_spec import EngineSpec
from tests.running.workers import until
from tests.samples.jobs import (
    claim,
    claimed_job,
    counting_statements,
    end_lease,
    job,
    set_columns,
)
from worker.attempts.attempt import Attempt
from worker.engines.engine_client import EngineClient
from worker.heartbeat import Heartbeat
from worker.recipes import Work
from worker.settings import Settings


@pytest.fixture(scope="module")
def client() -> Iterator[EngineClient]:
    """Return the client of an engine that never finishes a request."""
    it = EngineClient(
        EngineSpec(alias="reports", checkpoint="fake", engine="fake", fake_step_seconds=0.05)
    )
    it.start()
    yield it
    it.stop()


class Running:
    """The attempts of one worker and their outcomes."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client
        self.attempts: list[Attempt] = []
        self.outcomes: list[Outcome] = []
        self._ids = iter(range(id(self), id(self) + 1000))

    def start(self, fence: Fence, time_limit_seconds: float | None = None) -> Attempt:
        attempt = self.make(fence, time_limit_seconds)
        attempt.start()
        return attempt

    def make(self, fence: Fence, time_limit_seconds: float | None = None) -> Attempt:
        """Make an attempt that waits for a thread to start on."""
        contract = {"text": "a b c", "max_new_tokens": 1_000_000}
        work = Work(fence.job_id, "generate", contract, self.client.card, self._ids)
        attempt = Attempt(
            fence, work, 0, self.client, Settings(), time_limit_seconds, self.outcomes.append
        )
        self.attempts.append(attempt)
        return attempt


@pytest.fixture
def running(client: EngineClient) -> Iterator[Running]:
    it = Running(client)
    yield it
    for attempt in it.attempts:
        attempt.abandon()


def heartbeat(database: Database, running: Running, **settings: float) -> Heartbeat:
    return Heartbeat(
        database,
        "one",
        Settings(**settings),  # type: ignore[arg-type]
        running=lambda: running.attempts,
        clients=[],
        capacity=lambda: {"reports": 64},
        engines=lambda: [{"model": "reports"}],
    )


def test_a_running_job_keeps_its_lease(database: Database, running: Running) -> None:
    fence, forgotten = claimed_job(database), claimed_job(database)
    running.start(fence)
    set_columns(database, [fence.job_id, forgotten.job_id], lease_until=seconds_from_now(1))
    heartbeat(database, running).beat(0.0)
    renewed, left = (job(database, each.job_id).lease_until for each in (fence, forgotten))
    assert renewed is not None
    assert left is not None
    assert (renewed - left).total_seconds() > 50


def test_a_worker_is_known_from_its_start_to_its_stop(database: Database, running: Running) -> None:
    it = heartbeat(database, running)
    running.start(claimed_job(database))
    it.start()
    with database.read() as session:
        (row,) = session.scalars(worker_registry.live_workers())
    assert (row.name, row.room, row.num_running) == ("one", {"reports": 64}, 1)
    assert row.engines == [{"model": "reports"}]
    it.stop()
    with database.read() as session:
        assert session.scalars(worker_registry.live_workers()).all() == []


def cancelled(database: Database, fence: Fence) -> None:
    with database.write() as session:
        session.execute(cancel_retry.cancel_jobs(Job.id == fence.job_id))


def expired(database: Database, fence: Fence) -> None:
    set_columns(database, [fence.job_id], deadline=seconds_from_now(-1))
    with database.write() as session:
        session.execute(dispatch.expire_overdue(10))


def taken_over(database: Database, fence: Fence) -> None:
    end_lease(database, [fence.job_id])
    assert claim(database, [fence.job_id], "two")


def taken_up_again(database: Database, fence: Fence) -> None:
    end_lease(database, [fence.job_id])
    assert claim(database, [fence.job_id], "one")


@pytest.mark.parametrize("lost", [cancelled, expired, taken_over, taken_up_again])
def test_an_attempt_that_lost_its_right_stops_and_no_other_does(
    database: Database, running: Running, lost: Callable[[Database, Fence], None]
) -> None:
    fence, other = claimed_job(database), claimed_job(database)
    running.start(fence)
    running.start(other)
    it = heartbeat(database, running)
    it.end_lost()
    assert running.outcomes == []

    lost(database, fence)
    it.end_lost()
    it.end_lost()

    assert running.outcomes == [Outcome.released(fence)], "once, and unblamed"
    before = job(database, fence.job_id).state
    with database.write() as session:
        assert session.execute(completion.finish_attempts(running.outcomes)).all() == []
    assert job(database, fence.job_id).state == before


def test_an_attempt_that_runs_longer_than_its_job_allows_fails(
    database: Database, running: Running
) -> None:
    short, long = claimed_job(database), claimed_job(database)
    attempt = running.start(short, time_limit_seconds=5)
    running.start(long)
    it = heartbeat(database, running)
    it.end_overdue(attempt._started_at + 5)
    assert running.outcomes == []
    it.end_overdue(attempt._started_at + 5.1)
    (outcome,) = running.outcomes
    assert (outcome.fence, outcome.state) == (short, JobState.FAILED)
    assert outcome.error_code == "time_limit"


def test_a_time_limit_begins_when_its_attempt_does(database: Database, running: Running) -> None:
    """An attempt does not run while it waits for the thread that masks and splits texts."""
    attempt = running.make(claimed_job(database), time_limit_seconds=5)
    it = heartbeat(database, running)
    it.end_overdue(time.monotonic() + 3600)
    assert running.outcomes == []
    attempt.start()
    started_at = attempt._started_at
    assert started_at is not None
    it.end_overdue(started_at + 5)
    assert running.outcomes == []
    it.end_overdue(started_at + 5.1)
    assert [each.error_code for each in running.outcomes] == ["time_limit"]


def test_a_beat_reads_rights_each_time_and_writes_only_when_a_renewal_is_due(
    database: Database, running: Running
) -> None:
    """Renewals keep their interval, whatever the beats in between are."""
    it = heartbeat(database, running, watch_seconds=1, renew_seconds=2.5, lease_seconds=60)
    running.start(claimed_job(database))
    it.report()
    verbs, waits = [], []
    now = 1000.0
    for _ in range(5):
        with counting_statements(database) as statements:
            waits.append(it.beat(now))
        verbs.append(statements)
        now += waits[-1]
    assert waits == [1, 1, 0.5, 1, 1]
    look = ["SELECT"]
    renewal = ["SELECT", "UPDATE", "UPDATE"]  # all leases at once, and the worker's own row
    assert verbs == [renewal, look, look, renewal, look]


def test_a_worker_with_rare_cancellation_checks_still_counts_as_alive(
    database: Database, running: Running
) -> None:
    """Nothing is published for a dead worker, and this one renews its leases from the start."""
    it = heartbeat(database, running, watch_seconds=3600, renew_seconds=0.05, lease_seconds=60)

    def alive_until() -> datetime:
        with database.read() as session:
            return session.scalars(worker_registry.live_workers()).one().alive_until

    it.start()
    try:
        first = alive_until()
        until(lambda: alive_until() > first, "another report")
    finally:
        it.stop()


def test_leases_are_renewed_though_rights_cannot_be_read(
    database: Database, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = heartbeat(database, running)
    fence = claimed_job(database)
    running.start(fence)
    before = job(database, fence.job_id).lease_until
    set_columns(database, [fence.job_id], lease_until=seconds_from_now(1))
    with monkeypatch.context() as patch:
        patch.setattr(leases, "running_attempts", refuse)
        with pytest.raises(OSError):
            it.beat(1000.0)
    after = job(database, fence.job_id).lease_until
    assert before is not None
    assert after is not None
    assert after >= before


def refuse(*_: object) -> None:
    raise OSError
