"""What the dispatcher asks the database: whose turn it is, who is left behind, what is lost."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from db.clock import seconds_from_now
from db.lane import Lane
from db.queries.jobs import dispatch, leases, submission
from db.session import Database
from db.states import JobState
from tests.samples.jobs import (
    claim,
    claimed_job,
    end_lease,
    insert_job,
    insert_jobs,
    job,
    job_row,
    set_columns,
)


def turn(database: Database, limit: int = 10, min_age_seconds: float = 0.0) -> list[UUID]:
    with database.read() as session:
        found = dispatch.next_to_publish("reports", Lane.BULK, limit, min_age_seconds)
        return [job_id for job_id, _ in session.execute(found)]


def test_jobs_are_published_in_order_of_age(database: Database) -> None:
    ids = [insert_job(database) for _ in range(3)]
    assert turn(database) == sorted(ids, key=lambda each: (job(database, each).turn_at, each))
    assert turn(database, limit=2) == turn(database)[:2]


def test_priority_puts_a_job_before_those_of_its_time(database: Database) -> None:
    usual, urgent, least = (insert_job(database, priority=each) for each in (0, 1, -1))
    assert turn(database) == [urgent, usual, least]


def test_a_job_that_waited_long_enough_goes_before_higher_priority(database: Database) -> None:
    waited, urgent = insert_job(database), insert_job(database, priority=1)
    assert turn(database) == [urgent, waited]
    longer = seconds_from_now(-submission.PRIORITY_SECONDS - 1)
    set_columns(database, [waited], turn_at=longer)
    assert turn(database) == [waited, urgent]


def test_a_deadline_breaks_the_tie_of_jobs_submitted_together(database: Database) -> None:
    rows = [
        job_row(),
        job_row(deadline=datetime.now(UTC) + timedelta(hours=2)),
        job_row(deadline=datetime.now(UTC) + timedelta(hours=1)),
    ]
    whenever, later, soon = insert_jobs(database, rows)
    assert turn(database) == [soon, later, whenever]


def test_jobs_that_came_together_go_by_id(database: Database) -> None:
    ids = insert_jobs(database, [job_row() for _ in range(5)])
    assert turn(database) == sorted(ids)


def test_a_job_is_not_published_before_its_time(database: Database) -> None:
    insert_job(database, not_before=seconds_from_now(60))
    ready = insert_job(database, not_before=seconds_from_now(-1))
    assert turn(database) == [ready]


def test_a_job_of_a_submitter_that_may_still_publish_it_is_left_to_it(database: Database) -> None:
    insert_job(database)
    left = insert_job(database, created_at=seconds_from_now(-90))
    assert turn(database, min_age_seconds=60) == [left]


def test_only_unpublished_jobs_of_the_queue_have_a_turn(database: Database) -> None:
    mine = insert_job(database)
    insert_job(database, model="another")
    insert_job(database, lane=Lane.INTERACTIVE)
    claimed_job(database)
    insert_job(database, state=JobState.SUCCEEDED)
    published = insert_job(database)
    with database.write() as session:
        dispatch.mark_published(session, [published])
    assert turn(database) == [mine]


def test_marking_leaves_what_was_claimed_meanwhile(database: Database) -> None:
    running = claimed_job(database).job_id
    with database.write() as session:
        dispatch.mark_published(session, [running])
    assert job(database, running).published_at is None


def test_expired_leases_and_deadlines_are_found(database: Database) -> None:
    def has_run_out() -> bool:
        with database.read() as session:
            return bool(session.scalar(dispatch.has_run_out()))

    assert not has_run_out()
    lease, deadline = claimed_job(database), claimed_job(database).job_id
    set_columns(database, [deadline], deadline=seconds_from_now(60))
    assert not has_run_out()
    end_lease(database, [lease.job_id])
    assert has_run_out()
    with database.write() as session:
        session.execute(leases.requeue_expired_leases(10)).all()
    assert not has_run_out()
    set_columns(database, [deadline], deadline=seconds_from_now(-1))
    assert has_run_out()
    with database.write() as session:
        session.scalars(dispatch.expire_overdue(10)).all()
    assert not has_run_out()


def test_outstanding_jobs_are_published_or_running(database: Database) -> None:
    insert_job(database)
    ended = {"published_at": seconds_from_now(-2), "finished_at": seconds_from_now(-1)}
    insert_job(database, state=JobState.FAILED, **ended)
    insert_job(database, published_at=seconds_from_now(-1))
    claimed_job(database)
    claimed_job(database, model="another")
    with database.read() as session:
        outstanding = dict(session.execute(dispatch.outstanding_by_model()).all())
    assert outstanding == {"reports": 2, "another": 1}


def test_a_queue_whose_messages_are_lost_is_published_again(database: Database) -> None:
    lost = insert_job(database, published_at=seconds_from_now(-60))
    fresh = insert_job(database, published_at=seconds_from_now(-1))
    other = insert_job(database, model="another", published_at=seconds_from_now(-60))
    with database.read() as session:
        waiting = session.execute(dispatch.published_long_ago(30)).all()
    assert {tuple(row) for row in waiting} == {("reports", "bulk"), ("another", "bulk")}
    with database.write() as session:
        queue = ("reports", Lane.BULK)
        session.execute(dispatch.unpublish_queued(queue, seconds_from_now(-30)))
    assert turn(database) == [lost]
    assert job(database, fresh).published_at is not None
    assert job(database, other).published_at is not None


def test_when_the_broker_lost_everything_every_queue_is_published_again(
    database: Database,
) -> None:
    ids = [
        insert_job(database, model=model, published_at=seconds_from_now(-1))
        for model in ("reports", "another")
    ]
    running = claimed_job(database, published_at=seconds_from_now(-1))
    with database.write() as session:
        session.execute(dispatch.unpublish_queued(None, seconds_from_now(0)))
    assert [job(database, each).published_at for each in ids] == [None, None]
    assert job(database, running.job_id).published_at is not None


def test_what_is_past_its_deadline_expires_and_may_write_no_more(database: Database) -> None:
    past = [insert_job(database), claimed_job(database).job_id]
    finished = insert_job(database, state=JobState.SUCCEEDED, finished_at=seconds_from_now(-9))
    set_columns(database, [*past, finished], deadline=seconds_from_now(-1))
    in_time = insert_job(database, deadline=seconds_from_now(60))

    with database.write() as session:
        assert set(session.scalars(dispatch.expire_overdue(10))) == set(past)

    for job_id in past:
        row = job(database, job_id)
        assert (row.state, row.error_code) == (JobState.EXPIRED, "deadline_passed")
        assert (row.owner, row.lease_until) == (None, None)
        assert row.finished_at is not None
    assert claim(database, past) == []
    assert job(database, in_time).state == JobState.QUEUED
    assert job(database, finished).state == JobState.SUCCEEDED


def test_no_more_jobs_expire_at_once_than_the_limit(database: Database) -> None:
    past = [insert_job(database) for _ in range(5)]
    set_columns(database, past, deadline=seconds_from_now(-1))
    counts = []
    for _ in range(4):
        with database.write() as session:
            counts.append(len(session.scalars(dispatch.expire_overdue(2)).all()))
    assert counts == [2, 2, 1, 0]
