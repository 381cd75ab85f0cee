"""Whatever ends a worker, planned or not, its jobs end once."""

import signal
from collections import Counter
from typing import Any
from uuid import UUID

import pytest

from db import JobState
from tasks import submit_batch
from tasks.generate import GenerateContract
from tests.running.workers import TAKEN_UP_SOON, Cluster, assert_gone, on_sqlite, until
from tests.samples.jobs import end_lease

# Nothing finishes with the first, everything at once with the second.
SLOW: dict[str, Any] = {"name": "slow.toml", "fake_step_seconds": 0.2, "max_sequences": 8}
FAST: dict[str, Any] = {"name": "tidemill.toml"}
NUM_JOBS = 40


def submit(num_jobs: int = NUM_JOBS, max_new_tokens: int = 300) -> None:
    submit_batch(
        (
            GenerateContract.parse({"text": f"a {n}", "max_new_tokens": max_new_tokens})
            for n in range(num_jobs)
        ),
        name="night",
    )


@pytest.mark.usefixtures("as_started")
def test_a_planned_stop_gives_unfinished_jobs_back_unblamed(producer: Cluster) -> None:
    slow = producer.configure(worker={"drain_seconds": 0.3}, **SLOW)
    with producer.worker(TIDEMILL_CONFIG=str(slow)) as worker:
        submit()
        producer.wait_for(JobState.RUNNING, 8)
        worker.stop()
    assert producer.states() == {JobState.QUEUED: NUM_JOBS}
    given_back = [producer.job(job_id) for job_id in producer.results_per_job()]
    assert max(job.attempt for job in given_back) == 1
    assert {(job.failures, job.owner, job.error_code) for job in given_back} == {(0, None, None)}

    producer.configure(**FAST)
    with producer.worker():
        producer.wait_until_finished(NUM_JOBS)
    assert producer.states() == {JobState.SUCCEEDED: NUM_JOBS}
    assert Counter(producer.results_per_job().values()) == {1: NUM_JOBS}


@on_sqlite
def test_a_planned_stop_finishes_what_fits_in_the_time(producer: Cluster) -> None:
    producer.configure(worker={"drain_seconds": 60}, fake_step_seconds=0.01, max_sequences=8)
    with producer.worker() as worker:
        submit(8)
        producer.wait_for(JobState.RUNNING, 8)
        worker.stop()
    assert producer.states() == {JobState.SUCCEEDED: 8}
    assert Counter(producer.results_per_job().values()) == {1: 8}


@pytest.mark.usefixtures("as_started")
@on_sqlite
def test_a_second_signal_ends_a_drain_at_once(producer: Cluster) -> None:
    producer.configure(worker={"drain_seconds": 3600}, fake_step_seconds=0.2)
    with producer.worker() as worker:
        submit(4)
        producer.wait_for(JobState.RUNNING, 4)
        children = worker.children

        def given_back() -> bool:
            if producer.states() == {JobState.QUEUED: 4}:
                return True
            # Again, for Celery passes over one that comes before the pool begins to stop.
            worker.process.send_signal(signal.SIGTERM)
            return False

        until(given_back, "the jobs given back")
        assert worker.wait() == 0, worker.log
        assert_gone(children)


def test_a_killed_workers_jobs_are_taken_up_when_their_leases_end(producer: Cluster) -> None:
    slow = producer.configure(worker=TAKEN_UP_SOON, **SLOW)
    with producer.worker(TIDEMILL_CONFIG=str(slow)) as worker:
        submit()
        producer.wait_for(JobState.RUNNING, 8)
        worker.kill()
    num_running = producer.states()[JobState.RUNNING]
    assert num_running >= 8

    every = producer.results_per_job()
    end_lease(producer.database, (each for each in every if runs(producer, each)))
    producer.configure(worker=TAKEN_UP_SOON, **FAST)
    with producer.worker():
        producer.wait_until_finished(NUM_JOBS)
    assert producer.states() == {JobState.SUCCEEDED: NUM_JOBS}
    assert Counter(producer.results_per_job().values()) == {1: NUM_JOBS}
    ended = [producer.job(job_id) for job_id in producer.results_per_job()]
    assert Counter(job.attempt for job in ended) == {2: num_running, 1: NUM_JOBS - num_running}
    assert {job.failures for job in ended} == {0}, "being interrupted is not a failure"


def runs(cluster: Cluster, job_id: UUID) -> bool:
    return cluster.job(job_id).state == JobState.RUNNING


@on_sqlite
def test_a_killed_engine_process_costs_no_job(producer: Cluster) -> None:
    producer.configure(fake_step_seconds=0.02, max_sequences=8)
    with producer.worker() as worker:
        submit(16, max_new_tokens=40)
        producer.wait_for(JobState.RUNNING, 8)
        (engine,) = worker.children
        engine.kill()
        producer.wait_until_finished(16)
    assert producer.states() == {JobState.SUCCEEDED: 16}
