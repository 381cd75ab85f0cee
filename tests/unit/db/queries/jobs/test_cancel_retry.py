"""What people ask for: cancelling and retrying."""

import pytest

from db.models import Job
from db.outcome import Fence, Outcome
from db.queries.jobs import cancel_retry, completion, dispatch
from db.session import Database
from db.states import FINISHED, RETRIABLE, UNFINISHED, JobState
from tests.samples.jobs import claim, claimed_job, insert_job, job


@pytest.mark.parametrize("state", sorted(UNFINISHED))
def test_cancelling_ends_what_is_unfinished(database: Database, state: JobState) -> None:
    job_id = claimed_job(database).job_id if state is JobState.RUNNING else insert_job(database)
    with database.write() as session:
        assert list(session.scalars(cancel_retry.cancel_jobs(Job.id == job_id))) == [job_id]
    row = job(database, job_id)
    assert (row.state, row.owner, row.lease_until) == (JobState.CANCELLED, None, None)
    assert row.finished_at is not None
    assert claim(database, [job_id]) == []


@pytest.mark.parametrize("state", sorted(FINISHED))
def test_cancelling_leaves_what_is_finished(database: Database, state: JobState) -> None:
    job_id = insert_job(database, state=state)
    with database.write() as session:
        assert list(session.scalars(cancel_retry.cancel_jobs(Job.id == job_id))) == []
    assert job(database, job_id).state == state


def test_cancelling_touches_only_the_chosen(database: Database) -> None:
    chosen, other = insert_job(database, tenant="one"), insert_job(database, tenant="two")
    with database.write() as session:
        assert list(session.scalars(cancel_retry.cancel_jobs(Job.tenant == "one"))) == [chosen]
    assert job(database, other).state == JobState.QUEUED


def test_a_retried_job_has_a_clean_slate_and_keeps_its_attempt(database: Database) -> None:
    fence = claimed_job(database)
    with database.write() as session:
        dispatch.mark_published(session, [fence.job_id])
        session.execute(
            completion.finish_attempts([Outcome.failed(fence, "empty_prompt", "nothing to do")])
        )
    with database.write() as session:
        retried = cancel_retry.retry_jobs(Job.id == fence.job_id, [JobState.FAILED])
        assert list(session.scalars(retried)) == [fence.job_id]
    row = job(database, fence.job_id)
    assert (row.state, row.attempt, row.failures) == (JobState.QUEUED, 1, 0)
    assert (row.error_code, row.error_message, row.finished_at) == (None, None, None)
    assert (row.published_at, row.not_before) == (None, None)
    assert claim(database, [fence.job_id]) == [Fence(fence.job_id, 2, "one")]


@pytest.mark.parametrize("state", JobState)
def test_only_jobs_of_the_named_states_are_retried(database: Database, state: JobState) -> None:
    job_id = insert_job(database, state=state)
    with database.write() as session:
        retried = list(session.scalars(cancel_retry.retry_jobs(Job.id == job_id, RETRIABLE)))
    assert retried == ([job_id] if state in RETRIABLE else [])


def test_succeeded_jobs_cannot_be_retried() -> None:
    with pytest.raises(AssertionError):
        cancel_retry.retry_jobs(Job.tenant == "default", [JobState.SUCCEEDED])


def test_no_more_jobs_are_changed_at_once_than_the_limit(database: Database) -> None:
    ids = [insert_job(database) for _ in range(5)]
    for change in (
        lambda limit: cancel_retry.cancel_jobs(Job.tenant == "default", limit),
        lambda limit: cancel_retry.retry_jobs(Job.tenant == "default", RETRIABLE, limit),
    ):
        changed = []
        for _ in range(4):
            with database.write() as session:
                changed.append(session.scalars(change(2)).all())
        assert [len(each) for each in changed] == [2, 2, 1, 0]
        assert sorted(job_id for each in changed for job_id in each) == sorted(ids)
