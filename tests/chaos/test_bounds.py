"""What is promised in seconds, with the settings that workers have by themselves."""

import signal

import pytest
from sqlalchemy import select

from db.clock import now
from db.models import Leadership
from db.reading.health import DISPATCHER
from db.session import Database
from db.states import JobState
from tests.chaos.run import SHORT, Run
from tests.running.workers import WorkerProcess, assert_gone, on_sqlite, until
from tests.samples.jobs import insert_jobs, job_row

LEADERSHIP_SECONDS = 15
START_SECONDS = 2
RELEASE_SECONDS = 2
ENDLESS = 100_000  # tokens
NUM_WAITING = 50_000

on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def leads(database: Database, worker: WorkerProcess) -> bool:
    with database.read() as session:
        leader = session.scalar(
            select(Leadership.leader).where(
                Leadership.name == DISPATCHER, Leadership.until >= now()
            )
        )
    return leader is not None and f":{worker.pid}:" in leader


@on_postgresql
def test_the_lead_moves_within_fifteen_seconds_of_a_leaders_death(run: Run) -> None:
    run.cluster.configure()
    with run.cluster.worker() as leader:
        until(lambda: leads(run.cluster.database, leader), "the first leader")
        with run.cluster.worker() as heir:
            run.kill(leader)
            until(lambda: leads(run.cluster.database, heir), "another", LEADERSHIP_SECONDS)


@on_postgresql
def test_a_leader_that_hangs_is_followed_by_another_and_does_no_harm_later(run: Run) -> None:
    with run.cluster.worker() as leader:
        until(lambda: leads(run.cluster.database, leader), "the first leader")
        with run.cluster.worker() as heir:
            # Its connection to the database stays open, and what is locked there locked.
            leader.process.send_signal(signal.SIGSTOP)
            until(lambda: leads(run.cluster.database, heir), "another")
            run.submit(40)
            run.wait_until_finished()
            leader.process.send_signal(signal.SIGCONT)
            run.submit(40)
            run.wait_until_finished()
    assert run.complaints() == []


def test_an_interactive_job_behind_fifty_thousand_others_starts_within_two_seconds(
    run: Run,
) -> None:
    run.cluster.configure(fake_step_seconds=0.02)
    others = (job_row(task="generate", model="fake") for _ in range(NUM_WAITING))
    insert_jobs(run.cluster.database, others)
    with run.cluster.worker() as worker:
        run.cluster.wait_for(JobState.SUCCEEDED, 100)
        for _ in range(5):
            job_id = run.submit_one()
            until(lambda job_id=job_id: run.cluster.job(job_id).started_at, "its start")
            job = run.cluster.job(job_id)
            assert (job.started_at - job.created_at).total_seconds() < START_SECONDS
        assert run.num_unfinished() > NUM_WAITING / 2
        worker.kill()  # nobody waits for the others


@on_sqlite
def test_an_interactive_job_starts_though_a_large_engine_is_full_of_long_ones(run: Run) -> None:
    run.cluster.configure(fake_step_seconds=0.05, max_sequences=128)
    with run.cluster.worker() as worker:
        run.submit(1000, num_tokens=ENDLESS)
        # All that the dispatcher sends out for one worker.
        run.cluster.wait_for(JobState.RUNNING, 4 * 128)
        job_id = run.submit_one()
        until(lambda: run.cluster.job(job_id).started_at, "its start", START_SECONDS)
        worker.kill()


@on_sqlite
@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGQUIT], [signal.SIGTERM, signal.SIGTERM], [signal.SIGTERM, signal.SIGQUIT]],
    ids=lambda numbers: "+".join(number.name for number in numbers),
)
def test_a_worker_that_must_stop_at_once_releases_its_jobs_within_two_seconds(
    run: Run, numbers: list[signal.Signals]
) -> None:
    run.cluster.configure(worker={"drain_seconds": 3600}, fake_step_seconds=0.05)
    job_ids = run.submit(100, num_tokens=ENDLESS)
    with run.cluster.worker() as worker:
        run.cluster.wait_for(JobState.RUNNING, 64)
        children = worker.children
        for number in numbers:
            worker.process.send_signal(number)
            # Of two at once the kernel may make one.
            until(lambda: "shutdown (MainProcess)" in worker.log, "a sign that it was heard")
        until(lambda: run.cluster.states() == {JobState.QUEUED: 100}, "all", RELEASE_SECONDS)
        worker.wait()
        assert_gone(children)
    given_back = [run.cluster.job(job_id) for job_id in job_ids]
    assert {(job.failures, job.owner, job.error_code) for job in given_back} == {(0, None, None)}


@on_sqlite
def test_a_worker_whose_consumer_has_stalled_says_so_and_ends_for_its_supervisor(
    run: Run,
) -> None:
    run.cluster.configure(worker={**SHORT, "consumer_stall_seconds": 1})
    with run.cluster.worker() as stalled:
        children = stalled.children
        run.cluster.celery("control", "cancel_consumer", "tidemill.fake.bulk")
        run.submit(40)
        assert run.bury(stalled) == 1
        assert "consumer stalled: messages wait and none arrives" in stalled.log
        assert_gone(children)
    with run.cluster.worker():
        run.wait_until_finished()
    assert run.complaints() == []
