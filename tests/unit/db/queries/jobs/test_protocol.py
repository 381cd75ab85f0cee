"""The life of jobs as a state machine: in any order of events, each job gets one result.

It runs on both databases, with a clock that stands still until a rule lets time pass, a broker that
loses messages and delivers them twice, and workers that die and wake up again. The expected effect
of each statement is written here a second time, in plain Python.
"""

from dataclasses import dataclass, field
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, func, select

from db.clock import seconds_from_now
from db.lane import Lane
from db.models import AttemptRow, Job, Payload, Result
from db.outcome import Fence, Outcome
from db.queries.jobs import cancel_retry, completion, dispatch, leases, submission
from db.session import Database
from db.states import NEXT, RETRIABLE, UNFINISHED, JobState
from tests.samples.jobs import answer, claim, insert_jobs, job_row
from tests.services.virtual_clock import VirtualClock
from worker.committer import result_row

LEASE_SECONDS = 60
LOST_SECONDS = 30
RETRY_SECONDS = 600
DEADLINE_SECONDS = 300
QUEUE = ("reports", Lane.BULK)

OWNERS = st.sampled_from(["one", "two"])
WAITS = st.sampled_from([1, LOST_SECONDS + 1, LEASE_SECONDS + 1, DEADLINE_SECONDS, RETRY_SECONDS])


@dataclass
class ExpectedJob:
    """The expected state of a job, from the events so far."""

    deadline: int | None
    state: JobState = JobState.QUEUED
    holder: Fence | None = None  # the fence that may write
    lease_until: int = 0
    not_before: int = 0
    published_at: int | None = None
    attempts: list[int] = field(default_factory=list)  # every number ever given out

    def move(self, state: JobState) -> None:
        assert state in NEXT[self.state], (self.state, state)
        self.state, self.holder = state, None

    def back_in_line(self, not_before: int = 0) -> None:
        self.move(JobState.QUEUED)
        self.not_before, self.published_at = not_before, None

    def is_due(self, now: int) -> bool:
        waits = self.state is JobState.QUEUED and self.not_before <= now
        left = self.state is JobState.RUNNING and self.lease_until < now
        return (waits or left) and (self.deadline is None or self.deadline > now)


class Protocol(RuleBasedStateMachine):
    """Two workers, a dispatcher, a broker, a user and the clock, on one database."""

    jobs = Bundle("jobs")
    fences = Bundle("fences")  # every fence that was ever given out

    def __init__(self, database: Database, clock: VirtualClock) -> None:
        super().__init__()
        self.database = database
        self.clock = clock
        self.expected: dict[UUID, ExpectedJob] = {}
        self.messages: list[list[UUID]] = []  # the messages in the broker
        clock.set(0)
        with database.write() as session:
            for table in (Result, AttemptRow, Payload, Job):
                session.execute(delete(table))

    def teardown(self) -> None:
        """Once faults end, every job ends."""
        self.clock.set(self.clock.seconds + RETRY_SECONDS + LEASE_SECONDS + 1)
        self.sweep()
        self.sweep()  # jobs that the first sweep requeued were not lost yet
        self.publish(marked=True)
        while self.messages:
            for fence in self.deliver("three", again=False):
                self.end(Outcome.succeeded(fence, answer()))
        assert not UNFINISHED & {told.state for told in self.expected.values()}
        self.the_database_says_what_was_done_and_a_job_that_succeeded_has_one_result()

    # --- a producer ----------------------------------------------------------------------------

    @initialize(target=jobs)
    def first(self) -> UUID:
        return self.submit(hurried=False)

    @rule(target=jobs, hurried=st.booleans())
    def submit(self, hurried: bool) -> UUID:
        deadline = self.clock.seconds + DEADLINE_SECONDS if hurried else None
        row = job_row(deadline=None if deadline is None else self.clock.at(deadline))
        insert_jobs(self.database, [row])
        self.expected[row["id"]] = ExpectedJob(deadline)
        return row["id"]

    @rule(job_id=jobs)
    def submit_again(self, job_id: UUID) -> None:
        with self.database.write() as session:
            assert submission.insert_jobs(session, [job_row(id=job_id)]) == set()

    # --- a person ------------------------------------------------------------------------------

    @rule(job_id=jobs)
    def cancel(self, job_id: UUID) -> None:
        told = self.expected[job_id]
        with self.database.write() as session:
            cancelled = session.scalars(cancel_retry.cancel_jobs(Job.id == job_id)).all()
        assert len(cancelled) == (told.state in UNFINISHED)
        if cancelled:
            told.move(JobState.CANCELLED)

    @rule(job_id=jobs)
    def retry(self, job_id: UUID) -> None:
        told = self.expected[job_id]
        with self.database.write() as session:
            chosen = cancel_retry.retry_jobs(Job.id == job_id, RETRIABLE)
            retried = session.scalars(chosen).all()
        assert len(retried) == (told.state in RETRIABLE)
        if retried:
            told.back_in_line()

    # --- the dispatcher and its broker -----------------------------------------------------------

    @rule(marked=st.booleans())
    def publish(self, marked: bool) -> None:
        """Publish the next jobs; the dispatcher may die before it marks them."""
        now = self.clock.seconds
        with self.database.read() as session:
            ids = [each for each, _ in session.execute(dispatch.next_to_publish(*QUEUE, 100))]
        assert set(ids) == {
            job_id
            for job_id, told in self.expected.items()
            if told.state is JobState.QUEUED
            and told.published_at is None
            and told.not_before <= now
        }
        if ids:
            self.messages.append(ids)
        if marked:
            with self.database.write() as session:
                dispatch.mark_published(session, ids)
            for job_id in ids:
                self.expected[job_id].published_at = now

    @rule()
    def lose(self) -> None:
        """A message is taken off the list, and its consumer dies before it acks."""
        if self.messages:
            self.messages.pop(0)

    @rule()
    def lose_everything(self) -> None:
        self.messages.clear()
        with self.database.write() as session:
            session.execute(dispatch.unpublish_queued(None, seconds_from_now(0)))
        self.unpublished(self.clock.seconds)

    @rule()
    def sweep(self) -> None:
        """Requeue jobs of dead workers, expire jobs past their deadline, and republish lost
        messages."""
        now = self.clock.seconds
        long_ago = seconds_from_now(-LOST_SECONDS)
        with self.database.write() as session:
            left = session.execute(leases.requeue_expired_leases(100)).all()
            overdue = session.scalars(dispatch.expire_overdue(100)).all()
            waiting = session.execute(dispatch.published_long_ago(LOST_SECONDS)).all()
            if waiting and not self.messages:
                session.execute(dispatch.unpublish_queued(QUEUE, long_ago))
        ended = {
            job_id
            for job_id, told in self.expected.items()
            if told.state is JobState.RUNNING and told.lease_until < now
        }
        assert {row.id for row in left} == ended
        for job_id in ended:
            self.expected[job_id].back_in_line(self.expected[job_id].not_before)
        past = {
            job_id
            for job_id, told in self.expected.items()
            if told.state in UNFINISHED and told.deadline is not None and told.deadline <= now
        }
        assert set(overdue) == past
        for job_id in past:
            self.expected[job_id].move(JobState.EXPIRED)
        if not self.messages:
            self.unpublished(now - LOST_SECONDS)

    def unpublished(self, before: int) -> None:
        for told in self.expected.values():
            if told.state is JobState.QUEUED and told.published_at is not None:
                told.published_at = None if told.published_at <= before else told.published_at

    # --- workers -------------------------------------------------------------------------------

    @rule(target=fences, owner=OWNERS, again=st.booleans())
    def deliver_one(self, owner: str, again: bool) -> Fence | None:
        return next(iter(self.deliver(owner, again)), None) if self.messages else None

    def deliver(self, owner: str, again: bool) -> list[Fence]:
        """Deliver a message, perhaps not for the last time."""
        ids = self.messages[0] if again else self.messages.pop(0)
        return self.claimed(ids, owner)

    @rule(target=fences, job_id=jobs, owner=OWNERS)
    def deliver_late(self, job_id: UUID, owner: str) -> Fence | None:
        """Deliver an old copy of a message."""
        return next(iter(self.claimed([job_id], owner)), None)

    def claimed(self, job_ids: list[UUID], owner: str) -> list[Fence]:
        now = self.clock.seconds
        due = {job_id for job_id in job_ids if self.expected[job_id].is_due(now)}
        got = claim(self.database, job_ids, owner, LEASE_SECONDS)
        assert {fence.job_id for fence in got} == due
        for fence in got:
            told = self.expected[fence.job_id]
            told.attempts.append(fence.attempt)
            told.state, told.holder = JobState.RUNNING, fence
            told.lease_until, told.not_before = now + LEASE_SECONDS, 0
        return got

    @rule(owner=OWNERS)
    def renew(self, owner: str) -> None:
        with self.database.write() as session:
            statement = leases.renew_leases(owner, list(self.expected), LEASE_SECONDS)
            renewed = session.execute(statement).all()
        held = [
            told for told in self.expected.values() if told.holder and told.holder.owner == owner
        ]
        assert {tuple(row) for row in renewed} == {
            (told.holder.job_id, told.holder.attempt) for told in held if told.holder
        }
        for told in held:
            told.lease_until = self.clock.seconds + LEASE_SECONDS

    def end(self, outcome: Outcome) -> None:
        """Write as a committer does, even if the job has another owner by now."""
        told = self.expected[outcome.fence.job_id]
        with self.database.write() as session:
            if outcome.answer is None:
                written = session.execute(completion.finish_attempts([outcome])).all()
            else:
                fence = outcome.fence
                written = completion.succeed_attempts(
                    session, fence.owner, [(fence.job_id, fence.attempt)]
                ).all()
                if written:
                    session.execute(completion.insert_results(), [result_row(outcome)])
        assert bool(written) == (told.holder == outcome.fence)
        if not written:
            return
        if outcome.state is JobState.QUEUED:
            told.back_in_line(self.clock.seconds + int(outcome.delay_seconds))
        else:
            told.move(outcome.state)

    @rule(fence=fences)
    def succeed(self, fence: Fence | None) -> None:
        if fence is not None:
            self.end(Outcome.succeeded(fence, answer()))

    @rule(fence=fences)
    def fail(self, fence: Fence | None) -> None:
        if fence is not None:
            self.end(Outcome.failed(fence, "empty_prompt", "no text"))

    @rule(fence=fences)
    def release(self, fence: Fence | None) -> None:
        if fence is not None:
            self.end(Outcome.released(fence))

    @rule(fence=fences)
    def try_again_later(self, fence: Fence | None) -> None:
        if fence is not None:
            self.end(Outcome.retried(fence, "out_of_memory", "", RETRY_SECONDS))

    # --- time ------------------------------------------------------------------------------------

    @rule(seconds=WAITS)
    def time_passes(self, seconds: int) -> None:
        """Let time pass; a worker that died or sleeps does nothing meanwhile."""
        self.clock.set(self.clock.seconds + seconds)

    @rule(owner=OWNERS)
    def crash(self, owner: str) -> None:
        """The owner renews no lease any more, until all have ended."""
        self.clock.set(self.clock.seconds + LEASE_SECONDS + 1)
        self.renew("two" if owner == "one" else "one")

    # --- what is always true ---------------------------------------------------------------------

    @invariant()
    def the_database_says_what_was_done_and_a_job_that_succeeded_has_one_result(self) -> None:
        columns = (Job.id, Job.state, Job.owner, Job.attempt, Job.published_at)
        num_results = func.count(Result.job_id).label("num_results")
        with self.database.read() as session:  # one statement, since it runs after every step
            rows = session.execute(
                select(*columns, num_results).outerjoin(Result, Result.job_id == Job.id)
                .group_by(Job.id)
            ).all()  # fmt: skip
        kept = {row.id: row for row in rows}
        assert {job_id: row.state for job_id, row in kept.items()} == {
            job_id: told.state for job_id, told in self.expected.items()
        }
        for job_id, told in self.expected.items():
            row, holder = kept[job_id], told.holder
            assert row.owner == (holder.owner if holder else None)
            assert row.attempt == (told.attempts[-1] if told.attempts else 0)
            assert row.num_results == int(told.state is JobState.SUCCEEDED)
            if told.state is JobState.QUEUED:
                assert (row.published_at is None) == (told.published_at is None)

    @invariant()
    def no_attempt_is_ever_given_out_twice(self) -> None:
        for told in self.expected.values():
            assert told.attempts == sorted(set(told.attempts))


def test_every_job_ends_once_in_any_order_of_events(database: Database) -> None:
    clock = VirtualClock(database)
    run_state_machine_as_test(
        lambda: Protocol(database, clock),
        settings=settings(
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),  # transactions may be slow
        ),
    )
