"""The newest attempt of a job, and only it, says how the job goes on."""

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import select

from db.clock import now
from db.models import Job
from db.outcome import Fence, Outcome
from db.queries.jobs import cancel_retry, completion, dispatch
from db.session import Database
from db.states import JobState
from tests.samples.jobs import answer, claim, claimed_job, end_lease, insert_job, job


def finish(database: Database, *outcomes: Outcome) -> list[UUID]:
    with database.write() as session:
        return [row.id for row in session.execute(completion.finish_attempts(outcomes))]


def clock(database: Database) -> datetime:
    with database.read() as session:
        return session.execute(select(now())).scalar_one()


def unchanged(database: Database, fence: Fence) -> tuple[object, ...]:
    row = job(database, fence.job_id)
    return tuple(getattr(row, column.key) for column in Job.__table__.columns)


def test_a_succeeded_attempt_writes_its_result(database: Database) -> None:
    fence = claimed_job(database)
    assert finish(database, Outcome.succeeded(fence, answer())) == [fence.job_id]
    row = job(database, fence.job_id)
    assert (row.state, row.owner, row.lease_until) == (JobState.SUCCEEDED, None, None)
    assert (row.failures, row.error_code, row.not_before) == (0, None, None)
    assert row.finished_at is not None


def test_failure_is_final_and_says_why(database: Database) -> None:
    fence = claimed_job(database)
    finish(database, Outcome.failed(fence, "prompt_too_long", "the prompt has 9 tokens"))
    row = job(database, fence.job_id)
    assert (row.state, row.failures, row.attempt) == (JobState.FAILED, 1, 1)
    assert (row.error_code, row.error_message) == ("prompt_too_long", "the prompt has 9 tokens")
    assert row.finished_at is not None
    assert claim(database, [fence.job_id]) == []


def test_a_retry_is_queued_again_blamed_and_not_at_once(database: Database) -> None:
    fence = claimed_job(database, published_at=None)
    with database.write() as session:
        dispatch.mark_published(session, [fence.job_id])
    before = clock(database)
    finish(database, Outcome.retried(fence, "out_of_memory", "too much", delay_seconds=60))
    after = clock(database)
    row = job(database, fence.job_id)
    assert (row.state, row.owner, row.lease_until) == (JobState.QUEUED, None, None)
    assert (row.failures, row.error_code, row.published_at) == (1, "out_of_memory", None)
    assert row.finished_at is None
    assert row.not_before is not None
    assert before <= row.not_before - timedelta(seconds=60) <= after
    assert claim(database, [fence.job_id]) == []


def test_a_release_is_queued_again_unblamed_and_at_once(database: Database) -> None:
    fence = claimed_job(database)
    finish(database, Outcome.released(fence))
    row = job(database, fence.job_id)
    assert (row.state, row.failures, row.error_code) == (JobState.QUEUED, 0, None)
    assert (row.owner, row.published_at, row.finished_at) == (None, None, None)
    assert claim(database, [fence.job_id], "two") == [Fence(fence.job_id, 2, "two")]


def test_outcomes_of_every_kind_go_in_one_statement(database: Database) -> None:
    fences = [claimed_job(database) for _ in range(4)]
    outcomes = [
        Outcome.succeeded(fences[0], answer()),
        Outcome.failed(fences[1], "empty_prompt", "nothing to do"),
        Outcome.retried(fences[2], "out_of_memory", "too much", 60),
        Outcome.released(fences[3]),
    ]
    assert set(finish(database, *outcomes)) == {fence.job_id for fence in fences}
    assert [job(database, fence.job_id).state for fence in fences] == [
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.QUEUED,
        JobState.QUEUED,
    ]


def an_older_attempt(database: Database) -> Fence:
    fence = claimed_job(database, "one")
    end_lease(database, [fence.job_id])
    claim(database, [fence.job_id], "one")
    return fence


def another_owner(database: Database) -> Fence:
    fence = claimed_job(database, "one")
    return Fence(fence.job_id, fence.attempt, "two")


def a_cancelled_job(database: Database) -> Fence:
    fence = claimed_job(database)
    with database.write() as session:
        session.execute(cancel_retry.cancel_jobs(Job.id == fence.job_id))
    return fence


def an_attempt_that_has_ended(database: Database) -> Fence:
    fence = claimed_job(database)
    finish(database, Outcome.failed(fence, "empty_prompt", "nothing to do"))
    return fence


def a_job_back_in_line(database: Database) -> Fence:
    fence = claimed_job(database)
    finish(database, Outcome.released(fence))
    return fence


def a_job_that_was_never_claimed(database: Database) -> Fence:
    return Fence(insert_job(database), 0, "one")


@pytest.mark.parametrize(
    "of",
    [
        an_older_attempt,
        another_owner,
        a_cancelled_job,
        an_attempt_that_has_ended,
        a_job_back_in_line,
        a_job_that_was_never_claimed,
    ],
)
def test_an_attempt_without_the_right_to_write_changes_nothing(
    database: Database, of: Callable[[Database], Fence]
) -> None:
    fence = of(database)
    before = unchanged(database, fence)
    for outcome in (
        Outcome.succeeded(fence, answer()),
        Outcome.failed(fence, "empty_prompt", "nothing to do"),
        Outcome.retried(fence, "out_of_memory", "too much", 1),
        Outcome.released(fence),
    ):
        assert finish(database, outcome) == []
    assert unchanged(database, fence) == before


def test_stale_attempts_do_not_keep_current_ones_from_writing(database: Database) -> None:
    stale, current = an_older_attempt(database), claimed_job(database)
    written = finish(
        database, Outcome.succeeded(stale, answer()), Outcome.succeeded(current, answer())
    )
    assert written == [current.job_id]
