"""Leases are renewed by their owner, and requeue their jobs when they expire."""

from db.lane import Lane
from db.models import Job
from db.queries.jobs import cancel_retry, dispatch, leases
from db.session import Database
from db.states import JobState
from tests.samples.jobs import claimed_job, end_lease, job


def test_renewing_prolongs_the_leases_of_the_owners_running_attempts(database: Database) -> None:
    mine, others = claimed_job(database, "one"), claimed_job(database, "two")
    cancelled = claimed_job(database, "one")
    with database.write() as session:
        session.execute(cancel_retry.cancel_jobs(Job.id == cancelled.job_id))
    before = {fence: job(database, fence.job_id).lease_until for fence in (mine, others)}

    with database.write() as session:
        ids = [mine.job_id, others.job_id, cancelled.job_id]
        renewed = session.execute(leases.renew_leases("one", ids, 600)).all()

    assert [tuple(row) for row in renewed] == [(mine.job_id, 1)]
    now_until = job(database, mine.job_id).lease_until
    assert now_until is not None
    assert before[mine] is not None
    assert (now_until - before[mine]).total_seconds() > 500
    assert job(database, others.job_id).lease_until == before[others]


def test_jobs_of_a_dead_worker_go_back_in_line_unblamed(database: Database) -> None:
    dead, alive = claimed_job(database), claimed_job(database)
    end_lease(database, [dead.job_id])
    with database.write() as session:
        requeued = session.execute(leases.requeue_expired_leases(10)).all()
    assert [(row.id, row.attempt) for row in requeued] == [(dead.job_id, 1)]
    row = job(database, dead.job_id)
    assert (row.state, row.attempt, row.failures, row.owner) == (JobState.QUEUED, 1, 0, None)
    assert job(database, alive.job_id).state == JobState.RUNNING
    with database.read() as session:
        next_in_line = session.scalars(dispatch.next_to_publish("reports", Lane.BULK, 10)).all()
    assert next_in_line == [dead.job_id]


def test_no_more_leases_are_requeued_at_once_than_the_limit(database: Database) -> None:
    fences = [claimed_job(database) for _ in range(5)]
    end_lease(database, [fence.job_id for fence in fences])
    counts = []
    for _ in range(4):
        with database.write() as session:
            counts.append(len(session.execute(leases.requeue_expired_leases(2)).all()))
    assert counts == [2, 2, 1, 0]
