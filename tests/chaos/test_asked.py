"""Cancelling, deadlines, time limits and retries, while other jobs run undisturbed."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import select

from db.models import AttemptRow, Job
from db.queries.jobs import cancel_retry
from db.session import Database
from db.states import RETRIABLE, JobState
from tests.chaos.run import SHORT, Run
from tests.running.workers import on_sqlite, until

ENDLESS = 100_000  # tokens: a quarter of an hour
WAITING = 2000


def attempts(database: Database) -> list[AttemptRow]:
    with database.read() as session:
        return list(session.scalars(select(AttemptRow)))


def test_a_cancelled_batch_leaves_the_engine_and_others_go_on(run: Run) -> None:
    with run.cluster.worker():
        run.submit(1)
        run.wait_until_finished()
        endless = run.submit(40, num_tokens=ENDLESS)
        run.cluster.wait_for(JobState.RUNNING, 8)
        company = run.submit(8)
        # The endless ones fill the engine: the others run only when these have left it.
        run.cancel(endless)
        run.wait_until_finished()
    assert {run.cluster.job(each).state for each in company} == {JobState.SUCCEEDED}
    assert {run.cluster.job(each).state for each in endless} == {JobState.CANCELLED}
    assert run.complaints() == []


@on_sqlite
def test_a_job_past_its_deadline_expires_and_costs_no_model_time(run: Run) -> None:
    late = run.submit_one(deadline=datetime.now(UTC) + timedelta(seconds=1))
    until(lambda: run.cluster.job(late).deadline < datetime.now(UTC), "its deadline")
    with run.cluster.worker():
        run.submit(8)
        run.wait_until_finished()
    job = run.cluster.job(late)
    assert (job.state, job.attempt, job.error_code) == (JobState.EXPIRED, 0, "deadline_passed")
    assert run.complaints() == []


@on_sqlite
def test_a_job_past_its_time_limit_fails_and_others_in_its_batch_succeed(run: Run) -> None:
    with run.cluster.worker():
        long = run.poison(
            run.submit_one(max_new_tokens=ENDLESS, time_limit_seconds=1), "time_limit"
        )
        run.cluster.wait_for(JobState.RUNNING)
        company = run.submit(40, num_tokens=50)
        run.wait_until_finished()
    assert run.cluster.job(long).error_code == "time_limit"
    assert {(run.cluster.job(each).state, run.cluster.job(each).attempt) for each in company} == {
        (JobState.SUCCEEDED, 1)
    }
    assert run.complaints() == []


@on_sqlite
def test_a_retryable_failure_is_retried_and_each_attempt_is_recorded(run: Run) -> None:
    run.cluster.configure(worker=SHORT, fake_out_of_memory_on="word")
    with run.cluster.worker():
        job_id = run.poison(run.submit_one(), "out_of_memory")
        run.wait_until_finished()
    assert run.complaints() == []
    assert [(each.attempt, each.error_code) for each in attempts(run.cluster.database)] == [
        (attempt, "out_of_memory") for attempt in (1, 2, 3)
    ]

    run.cluster.configure(worker=SHORT)  # there is enough now
    with run.cluster.database.write() as session:
        session.execute(cancel_retry.retry_jobs(Job.id == job_id, RETRIABLE))
    with run.cluster.worker():
        run.wait_until_finished()
    job = run.cluster.job(job_id)
    assert (job.state, job.attempt, job.failures) == (JobState.SUCCEEDED, 4, 0)


@on_sqlite
def test_an_interactive_job_overtakes_the_bulk(run: Run) -> None:
    run.submit(WAITING)
    with run.cluster.worker():
        run.cluster.wait_for(JobState.SUCCEEDED, 8)
        job_id = run.submit_one()
        until(lambda: run.cluster.job(job_id).state == JobState.SUCCEEDED, "its result")
        assert run.num_unfinished() > WAITING / 2
        run.cancel(unfinished(run.cluster.database))
        run.wait_until_finished()
    assert run.complaints() == []


def unfinished(database: Database) -> list[UUID]:
    with database.read() as session:
        return list(session.scalars(select(Job.id).where(Job.finished_at.is_(None))))
