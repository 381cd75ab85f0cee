"""A job is claimed by one, when it is due."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from db.clock import seconds_from_now
from db.outcome import Fence
from db.queries.jobs import claims, dispatch
from db.session import Database
from db.states import FINISHED, JobState
from tests.samples.jobs import (
    claim,
    claimed_job,
    end_lease,
    insert_job,
    insert_jobs,
    job,
    job_row,
    states,
)


def test_a_claimed_job_runs_with_an_owner_and_a_lease(database: Database) -> None:
    job_id = insert_job(database)

    assert claim(database, [job_id], "one", 60) == [Fence(job_id, 1, "one")]

    row = job(database, job_id)
    assert (row.state, row.owner, row.attempt, row.failures) == (JobState.RUNNING, "one", 1, 0)
    assert row.lease_until is not None
    assert row.started_at is not None
    assert 59 < (row.lease_until - row.started_at).total_seconds() < 61


def test_a_claim_returns_the_job_with_what_its_recipe_and_its_retries_need(
    database: Database,
) -> None:
    job_id = insert_job(database, task="translate", model="opus")
    with database.write() as session:
        (row,) = claims.claim(session, [job_id], "one", 60).all()
        contracts = dict(session.execute(claims.payloads_of([job_id])).all())
    job_of_recipe = (job_id, "translate", "opus", "bulk")
    assert tuple(row)[:10] == (*job_of_recipe, 1, 0, None, "default", None, None)
    assert row.wait_microseconds >= 0
    assert contracts == {job_id: {"text": "three words long"}}


def test_only_due_jobs_are_claimed(database: Database) -> None:
    due = [
        insert_job(database),
        insert_job(database, not_before=seconds_from_now(-1)),
        insert_job(database, deadline=seconds_from_now(60)),
        insert_job(database, state=JobState.RUNNING, lease_until=seconds_from_now(-1)),
    ]
    not_due = [
        insert_job(database, not_before=seconds_from_now(60)),
        insert_job(database, deadline=seconds_from_now(-1)),
        insert_job(database, state=JobState.RUNNING, lease_until=seconds_from_now(60)),
        *(insert_job(database, state=state) for state in FINISHED),
    ]
    got = claim(database, [*due, *not_due, uuid7()])
    assert {fence.job_id for fence in got} == set(due)


def test_the_attempt_rises_with_every_claim(database: Database) -> None:
    job_id = insert_job(database)
    for attempt in (1, 2, 3):
        assert claim(database, [job_id]) == [Fence(job_id, attempt, "one")]
        assert claim(database, [job_id]) == []
        end_lease(database, [job_id])


def test_a_job_whose_lease_ended_may_be_taken_by_another(database: Database) -> None:
    fence = claimed_job(database, owner="one")
    assert claim(database, [fence.job_id], "two") == []
    end_lease(database, [fence.job_id])
    assert claim(database, [fence.job_id], "two") == [Fence(fence.job_id, 2, "two")]


def test_a_claim_forgets_the_time_before_which_the_job_had_to_wait(database: Database) -> None:
    job_id = insert_job(database, not_before=seconds_from_now(-1))
    claim(database, [job_id])
    assert job(database, job_id).not_before is None


def test_two_claimers_at_once_never_get_one_job(database: Database) -> None:
    job_ids = insert_jobs(database, (job_row() for _ in range(120)))
    got: dict[str, list[UUID]] = {"one": [], "two": [], "three": []}
    start = threading.Barrier(len(got))

    def take(owner: str) -> None:
        mine = random.Random(owner).sample(job_ids, len(job_ids))
        start.wait()
        for at in range(0, len(mine), 10):
            got[owner] += [fence.job_id for fence in claim(database, mine[at : at + 10], owner)]

    threads = [threading.Thread(target=take, args=[owner]) for owner in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    taken = [job_id for owner in got.values() for job_id in owner]
    assert len(taken) == len(set(taken))
    # What one passed over because another was about to take it is taken by nobody else.
    assert states(database).get(JobState.RUNNING) == len(taken)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_claim_waits_for_a_job_that_is_being_marked_as_published(database: Database) -> None:
    """Skipping it would ack its message, and nobody would come for it."""
    job_id = insert_job(database)
    with ThreadPoolExecutor() as pool:
        with database.write() as session:
            dispatch.mark_published(session, [job_id])
            claiming = pool.submit(claim, database, [job_id], "one")
            wait_for_a_lock(session)
        assert claiming.result() == [Fence(job_id, 1, "one")]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_second_of_two_simultaneous_claims_gets_nothing(database: Database) -> None:
    job_id = insert_job(database)
    with ThreadPoolExecutor() as pool:
        with database.write() as session:
            assert len(claims.claim(session, [job_id], "one", 60).all()) == 1
            claiming = pool.submit(claim, database, [job_id], "two")
            wait_for_a_lock(session)
        assert claiming.result() == []
    assert job(database, job_id).owner == "one"


def wait_for_a_lock(session: Session) -> None:
    """Return when another transaction waits for this one."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    while not session.scalar(waiting):
        session.execute(text("SELECT pg_sleep(0.01)"))
