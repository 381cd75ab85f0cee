"""The life of jobs as a state machine: whatever happens in whatever order, one result each."""

import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import select

from db import queries
from db.models import Job
from db.outcome import Fence, Outcome
from db.schema import migrate
from db.session import Database
from db.states import NEXT, RETRIABLE, UNFINISHED, JobState
from tests.jobs import (
    answer,
    claim,
    end_lease,
    insert_job,
    job_row,
    results_per_job,
    set_columns,
)
from worker.committer import result_row


@cache
def template() -> Path:
    """An empty database with our tables, to copy."""
    path = Path(tempfile.mkdtemp()) / "template.db"
    database = Database(f"sqlite:///{path}")
    migrate(database)
    database.close()
    return path


OWNERS = st.sampled_from(["one", "two"])


@dataclass
class Told:
    """What is known of a job from what was done to it."""

    state: JobState = JobState.QUEUED
    holder: Fence | None = None  # who may write
    lease_ended: bool = False
    waits: bool = False  # its time has not come
    attempts: list[int] = field(default_factory=list)  # every number ever given out

    def move(self, state: JobState) -> None:
        assert state in NEXT[self.state], (self.state, state)
        self.state, self.holder, self.lease_ended, self.waits = state, None, False, False


class Protocol(RuleBasedStateMachine):
    """Two workers, a person and the clock, on one database."""

    jobs = Bundle("jobs")
    fences = Bundle("fences")  # every right to write that was ever given out

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        shutil.copy(template(), self.folder / "jobs.db")
        self.database = Database(f"sqlite:///{self.folder}/jobs.db")
        self.told: dict[UUID, Told] = {}

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.folder)

    @initialize(target=jobs)
    def first(self) -> UUID:
        return self.enqueue()

    @rule(target=jobs)
    def enqueue(self) -> UUID:
        job_id = insert_job(self.database)
        self.told[job_id] = Told()
        return job_id

    @rule(job_id=jobs)
    def enqueue_again(self, job_id: UUID) -> None:
        with self.database.write() as session:
            assert queries.insert_jobs(session, [job_row(id=job_id)]) == set()

    @rule(target=fences, job_id=jobs, owner=OWNERS)
    def claim(self, job_id: UUID, owner: str) -> Fence | None:
        told = self.told[job_id]
        due = told.state is JobState.QUEUED and not told.waits
        due = due or (told.state is JobState.RUNNING and told.lease_ended)

        got = claim(self.database, [job_id], owner)

        assert len(got) == due
        if not due:
            return None
        told.attempts.append(got[0].attempt)
        told.state, told.holder, told.lease_ended = JobState.RUNNING, got[0], False
        return got[0]

    def finish(self, outcome: Outcome) -> bool:
        """Write as a committer does; says whether the attempt had the right to."""
        with self.database.write() as session:
            written = session.execute(queries.finish_attempts([outcome])).all()
            if written and outcome.answer is not None:
                session.execute(queries.insert_results(), [result_row(outcome)])
        told = self.told[outcome.fence.job_id]
        assert bool(written) == (told.holder == outcome.fence)
        if written:
            told.move(outcome.state)
        return bool(written)

    @rule(fence=fences)
    def succeed(self, fence: Fence | None) -> None:
        if fence is not None:
            self.finish(Outcome.succeeded(fence, answer()))

    @rule(fence=fences)
    def fail(self, fence: Fence | None) -> None:
        if fence is not None:
            self.finish(Outcome.failed(fence, "empty_prompt", "no text"))

    @rule(fence=fences)
    def release(self, fence: Fence | None) -> None:
        if fence is not None:
            self.finish(Outcome.released(fence))

    @rule(fence=fences)
    def try_again_later(self, fence: Fence | None) -> None:
        if fence is not None and self.finish(Outcome.retried(fence, "out_of_memory", "", 3600)):
            self.told[fence.job_id].waits = True

    @rule(job_id=jobs)
    def let_its_time_come(self, job_id: UUID) -> None:
        set_columns(self.database, [job_id], not_before=None)
        self.told[job_id].waits = False

    @rule(job_id=jobs)
    def let_its_lease_end(self, job_id: UUID) -> None:
        if self.told[job_id].state is JobState.RUNNING:
            end_lease(self.database, [job_id])
            self.told[job_id].lease_ended = True

    @rule(owner=OWNERS)
    def renew(self, owner: str) -> None:
        with self.database.write() as session:
            renewed = session.execute(queries.renew_leases(owner, list(self.told), 60)).all()
        held = [told for told in self.told.values() if told.holder and told.holder.owner == owner]
        assert {tuple(row) for row in renewed} == {
            (told.holder.job_id, told.holder.attempt) for told in held if told.holder
        }
        for told in held:
            told.lease_ended = False

    @rule()
    def recover(self) -> None:
        with self.database.write() as session:
            left = session.execute(queries.requeue_expired_leases(100)).all()
        ended = {job_id for job_id, told in self.told.items() if told.lease_ended}
        assert {row.id for row in left} == ended
        for job_id in ended:
            self.told[job_id].move(JobState.QUEUED)

    @rule(job_id=jobs)
    def cancel(self, job_id: UUID) -> None:
        told = self.told[job_id]
        with self.database.write() as session:
            cancelled = session.scalars(queries.cancel_jobs(Job.id == job_id)).all()
        assert len(cancelled) == (told.state in UNFINISHED)
        if cancelled:
            told.move(JobState.CANCELLED)

    @rule(job_id=jobs)
    def retry(self, job_id: UUID) -> None:
        told = self.told[job_id]
        with self.database.write() as session:
            chosen = queries.retry_jobs(Job.id == job_id, RETRIABLE)
            retried = session.scalars(chosen).all()
        assert len(retried) == (told.state in RETRIABLE)
        if retried:
            told.move(JobState.QUEUED)

    @invariant()
    def the_database_says_what_was_done(self) -> None:
        with self.database.read() as session:
            kept = {row.id: row for row in session.scalars(select(Job))}
        assert {job_id: row.state for job_id, row in kept.items()} == {
            job_id: told.state for job_id, told in self.told.items()
        }
        for job_id, told in self.told.items():
            holder = told.holder
            assert kept[job_id].owner == (holder.owner if holder else None)
            assert kept[job_id].attempt == (told.attempts[-1] if told.attempts else 0)

    @invariant()
    def a_job_that_succeeded_has_one_result_and_no_other_has_any(self) -> None:
        assert results_per_job(self.database) == {
            job_id: int(told.state is JobState.SUCCEEDED) for job_id, told in self.told.items()
        }

    @invariant()
    def no_attempt_is_ever_given_out_twice(self) -> None:
        for told in self.told.values():
            assert told.attempts == sorted(set(told.attempts))


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
