"""Reads the history of a run and the database, and reports every broken promise.

It shares no code with what it checks, except the tables and the allowed changes of state. No
complaint means:
- every accepted job exists and has ended once, in one final state;
- every succeeded job has one result, written once, of its own text, and no other job has one;
- every attempt number is given out once, in order, and only the attempt that holds a job has
  ended it;
- only failures are counted as failures;
- jobs of dead workers were requeued in time.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import select

from db.models import AttemptRow, Job, Payload, Result
from db.session import Database
from db.states import FINISHED, NEXT, JobState
from tests.chaos.history import History
from tests.chaos.witness import Seen, testimony

# Results of an interrupted attempt, which is no failure of the job.
UNBLAMED = frozenset({None, "lease_expired"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The limits of a recovery: as promised, with a margin for a busy machine."""

    lease_seconds: float
    lead_seconds: float
    dispatch_seconds: float
    allowance_seconds: float

    @property
    def orphan_seconds(self) -> float:
        """The time until a dead worker's job is requeued: its lease, a new leader, one sweep."""
        return (
            self.lease_seconds + self.lead_seconds + self.dispatch_seconds + self.allowance_seconds
        )


@dataclass
class Books:
    """The promises to the producer, the contents of the database, and the witness's record."""

    submitted: set[UUID]
    batches: dict[UUID, int]  # batch -> how many of the submitted jobs are in it
    poison: dict[UUID, str]  # job -> the code with which it must fail
    cancelled: set[UUID]  # cancellation was requested
    jobs: dict[UUID, Job]
    texts: dict[UUID, str]
    outputs: dict[UUID, str]
    attempts: list[AttemptRow]
    seen: list[Seen]
    deaths: list[tuple[float, int]]  # the time, and the process id of the worker
    outages: list[tuple[float, float]]  # of services that every worker needs: from, until
    of_job: dict[UUID, list[Seen]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, history: History, database: Database) -> "Books":
        submitted: set[UUID] = set()
        batches: dict[UUID, int] = {}
        for event in history.read("submitted"):
            submitted.update(map(UUID, event["job_ids"]))
            if event["batch_id"] is not None:
                batches[UUID(event["batch_id"])] = len(event["job_ids"])
        with database.read() as session:
            books = cls(
                submitted=submitted,
                batches=batches,
                poison={UUID(each["job_id"]): each["code"] for each in history.read("poison")},
                cancelled={
                    UUID(job_id) for each in history.read("cancelled") for job_id in each["job_ids"]
                },
                jobs={job.id: job for job in session.scalars(select(Job))},
                texts={
                    job_id: contract["text"]
                    for job_id, contract in session.execute(
                        select(Payload.job_id, Payload.contract)
                    )
                },
                outputs=dict(session.execute(select(Result.job_id, Result.output)).all()),
                attempts=list(session.scalars(select(AttemptRow))),
                seen=testimony(database),
                deaths=[(each["at"], each["pid"]) for each in history.read("death")],
                outages=list(outages(history)),
            )
        for each in books.seen:
            books.of_job[each.job_id].append(each)
        return books


def outages(history: History) -> Iterator[tuple[float, float]]:
    started: dict[str, float] = {}
    for event in history.read("fault", "over"):
        if event["event"] == "fault" and event.get("outage"):
            started[event["kind"]] = event["at"]
        elif event["event"] == "over" and event["kind"] in started:
            yield started.pop(event["kind"]), event["at"]


def complaints(history: History, database: Database, bounds: Bounds | None = None) -> list[str]:
    """Every broken promise, as a sentence; without bounds, times are not checked."""
    books = Books.of(history, database)
    assert books.submitted, "nothing was submitted, so nothing was proved"
    found = [*_lost(books), *_results(books), *_moves(books), *_attempts(books), *_failures(books)]
    if bounds is not None:
        found += _orphans(books, bounds)
    return found


def _lost(books: Books) -> Iterator[str]:
    for job_id in sorted(books.submitted - books.jobs.keys()):
        yield f"job {job_id} was accepted and is gone"
    for job_id, job in books.jobs.items():
        if job.state not in FINISHED:
            yield f"job {job_id} has not ended: {job.state}, attempt {job.attempt}"
        if job.state in FINISHED and (job.owner or job.lease_until or not job.finished_at):
            yield f"job {job_id} is {job.state}, and yet owned or without an end"
        if job.state == JobState.CANCELLED and job_id not in books.cancelled:
            yield f"job {job_id} was cancelled by nobody"
        if job.state == JobState.EXPIRED and job.deadline is None:
            yield f"job {job_id} expired without a deadline"
    sizes = Counter(job.batch_id for job in books.jobs.values())
    for batch_id, num_jobs in books.batches.items():
        if sizes[batch_id] != num_jobs:
            yield f"batch {batch_id} has {sizes[batch_id]} jobs, and {num_jobs} were submitted"


def _results(books: Books) -> Iterator[str]:
    writes: dict[UUID, Counter[str]] = defaultdict(Counter)
    for each in books.seen:
        if each.what != "job":
            writes[each.job_id][each.what] += 1
    for job_id, job in books.jobs.items():
        wanted = {"result insert": 1} if job.state == JobState.SUCCEEDED else {}
        if dict(writes[job_id]) != wanted:
            yield f"job {job_id} is {job.state}, with the writes {dict(writes[job_id])}"
        if (job_id in books.outputs) != (job.state == JobState.SUCCEEDED):
            yield f"job {job_id} is {job.state}: result {job_id in books.outputs}"
    for job_id, output in books.outputs.items():
        # The fake engine answers in words of the prompt, of which one is the job's own.
        if not set(output.split()) <= set(books.texts[job_id].split()):
            yield f"job {job_id} has an answer to something else"


def _moves(books: Books) -> Iterator[str]:
    """Each change of a job's row follows from the one before it."""
    for job_id, changes in books.of_job.items():
        state, attempt = JobState.QUEUED.value, 0
        for each in changes:
            if each.what != "job":
                continue
            if (each.state_before, each.attempt_before) != (state, attempt):
                yield f"job {job_id} was changed unseen before {each}"
            assert each.state_before is not None
            assert each.state is not None
            assert each.attempt is not None
            claimed = each.attempt != each.attempt_before
            if claimed and (each.attempt, each.state) != (attempt + 1, JobState.RUNNING):
                yield f"job {job_id} was given the attempt {each.attempt} after {attempt}"
            # A claim may take over a running job whose lease has ended.
            if not claimed and JobState(each.state) not in NEXT[JobState(each.state_before)]:
                yield f"job {job_id} went from {each.state_before} to {each.state}"
            state, attempt = each.state, each.attempt
        job = books.jobs.get(job_id)
        if job is not None and (job.state, job.attempt) != (state, attempt):
            yield f"job {job_id} is {job.state} ({job.attempt}), last seen {state} ({attempt})"


def _attempts(books: Books) -> Iterator[str]:
    for row in books.attempts:
        job = books.jobs[row.job_id]
        if row.attempt > job.attempt:
            yield f"job {job.id} has a record of attempt {row.attempt} of {job.attempt}"
        if row.attempt == job.attempt and job.state == JobState.SUCCEEDED:
            yield f"job {job.id} succeeded with attempt {job.attempt}, recorded as {row.error_code}"


def _failures(books: Books) -> Iterator[str]:
    blamed = Counter(row.job_id for row in books.attempts if row.error_code not in UNBLAMED)
    for job_id, job in books.jobs.items():
        if job.failures != blamed[job_id]:
            yield f"job {job_id} counts {job.failures} failures; recorded are {blamed[job_id]}"
        code = books.poison.get(job_id)
        if code is None and (job.failures or job.state == JobState.FAILED):
            yield f"job {job_id} is blamed for what it did not do: {job.error_code}"
        if code is not None and (job.state, job.error_code) != (JobState.FAILED, code):
            yield f"job {job_id} is {job.state} ({job.error_code}) and should fail with {code}"


def _orphans(books: Books, bounds: Bounds) -> Iterator[str]:
    for job_id, seconds in orphaned_seconds(books):
        if seconds > bounds.orphan_seconds:
            yield (
                f"job {job_id} was a dead worker's for {seconds:.1f} s; "
                f"{bounds.orphan_seconds:.1f} s are allowed"
            )


def orphaned_seconds(books: Books) -> Iterator[tuple[UUID, float]]:
    """For every attempt of a worker that died: the seconds until its job was requeued.

    Outages, in which no worker could have requeued it, do not count.
    """
    for died_at, pid in books.deaths:
        for job_id, changes in books.of_job.items():
            moves = [each for each in changes if each.what == "job"]
            held = [each for each in moves if each.at < died_at]
            if not held or held[-1].owner is None or f":{pid}:" not in held[-1].owner:
                continue
            taken = [each.at for each in moves if each.at >= died_at]
            if taken:
                yield job_id, taken[0] - died_at - _overlap(books.outages, died_at, taken[0])


def _overlap(intervals: list[tuple[float, float]], start: float, end: float) -> float:
    """The seconds of [start, end] that the intervals cover."""
    covered, reached = 0.0, start
    for one, other in sorted(intervals):
        one, other = max(one, reached), min(other, end)
        if other > one:
            covered += other - one
            reached = other
    return covered


def resumed_seconds(history: History, database: Database) -> dict[str, list[float]]:
    """By kind of fault: the seconds from its end to the next committed result."""
    kept = [each.at for each in testimony(database) if each.state == JobState.SUCCEEDED]
    seconds: dict[str, list[float]] = defaultdict(list)
    for event in history.read("over"):
        after = next((at for at in kept if at >= event["at"]), None)
        if after is not None:
            seconds[event["kind"]].append(after - event["at"])
    return dict(seconds)


def summary(history: History, database: Database) -> dict[str, Any]:
    """The figures of a run."""
    books = Books.of(history, database)
    orphaned = sorted(seconds for _, seconds in orphaned_seconds(books))
    return {
        "jobs": len(books.jobs),
        "states": dict(Counter(job.state for job in books.jobs.values())),
        "attempts": sum(job.attempt for job in books.jobs.values()),
        "faults": dict(Counter(each["kind"] for each in history.read("fault"))),
        "deaths": len(books.deaths),
        "orphaned_p50": round(orphaned[len(orphaned) // 2], 2) if orphaned else None,
        "orphaned_max": round(orphaned[-1], 2) if orphaned else None,
        "resumed_max": {
            kind: round(max(each), 2) for kind, each in resumed_seconds(history, database).items()
        },
    }
