"""Outcomes are written many at once; what is written may be acked, and nothing before it is."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import Mock
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from db.models import AttemptRow, Result
from db.outcome import Answer, Fence, Outcome
from db.session import Database
from db.states import JobState
from tests.running.workers import PATIENCE_SECONDS
from tests.samples.jobs import (
    answer,
    claim,
    claimed_job,
    counting_statements,
    end_lease,
    insert_jobs,
    job,
    job_row,
    refusing_commits,
    results_per_job,
    states,
)
from worker.committer import Committer, flush_due
from worker.settings import Settings

# What no database keeps, were an engine ever to say it.
UNKEPT = {"nothing": None, "half a character": "secret \ud83d"}


@dataclass
class Written:
    """What may be acked, in order, and an event when there is more."""

    outcomes: list[Outcome] = field(default_factory=list)
    flushes: list[int] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, outcomes: Sequence[Outcome]) -> None:
        with self.changed:
            self.outcomes += outcomes
            self.flushes.append(len(outcomes))
            self.changed.notify_all()

    def wait_for(self, num_outcomes: int) -> None:
        with self.changed:
            assert self.changed.wait_for(
                lambda: len(self.outcomes) >= num_outcomes, PATIENCE_SECONDS
            )


@contextmanager
def committing(database: Database, **settings: float) -> Iterator[tuple[Committer, Written]]:
    written = Written()
    committer = Committer(database, Settings(**settings), written.add)  # type: ignore[arg-type]
    committer.start()
    yield committer, written
    committer.stop()


def claimed(database: Database, number: int) -> list[Fence]:
    return claim(database, insert_jobs(database, (job_row() for _ in range(number))))


SETTINGS = Settings(flush_outcomes=3, flush_seconds=1.0)


@pytest.mark.parametrize(
    ("num_buffered", "oldest_at", "now", "due"),
    [
        (0, 0.0, 99.0, False),
        (1, 0.0, 0.9, False),
        (1, 0.0, 1.0, True),
        (2, 0.5, 1.0, False),
        (3, 1.0, 1.0, True),
        (9, 1.0, 1.0, True),
    ],
)
def test_a_flush_is_due_when_enough_wait_or_one_has_waited_enough(
    num_buffered: int, oldest_at: float, now: float, due: bool
) -> None:
    assert flush_due(num_buffered, oldest_at, now, SETTINGS) is due


@given(st.integers(0, 100), st.floats(0, 100), st.floats(0, 100))
def test_an_empty_buffer_is_never_due_and_a_full_one_always(
    num: int, oldest_at: float, waited: float
) -> None:
    due = flush_due(num, oldest_at, oldest_at + waited, SETTINGS)
    assert not (num == 0 and due)
    assert due or num < 3


def test_outcomes_are_written_before_the_callback(database: Database) -> None:
    fences = claimed(database, 3)
    with committing(database) as (committer, written):
        committer.put(Outcome.succeeded(fences[0], answer("all well")))
        committer.put(Outcome.failed(fences[1], "empty_prompt", "no text"))
        committer.put(Outcome.released(fences[2]))
        written.wait_for(3)
        assert committer.num_unwritten == 0
    assert states(database) == {"succeeded": 1, "failed": 1, "queued": 1}
    assert [each.fence for each in written.outcomes] == fences


def test_an_unsuccessful_attempt_leaves_a_record(database: Database) -> None:
    good, bad, released = claimed(database, 3)
    with committing(database) as (committer, written):
        committer.put(Outcome.succeeded(good, answer()))
        committer.put(Outcome.failed(bad, "empty_prompt", "no text"))
        committer.put(Outcome.released(released))
        written.wait_for(3)
    with database.read() as session:
        kept = {row.job_id: row for row in session.scalars(select(AttemptRow))}
    assert {
        job_id: (row.attempt, row.next_state, row.error_code) for job_id, row in kept.items()
    } == {
        bad.job_id: (1, "failed", "empty_prompt"),
        released.job_id: (1, "queued", None),
    }


@pytest.mark.parametrize("num_outcomes", [1, 8, 64, 256])
def test_a_flush_is_a_handful_of_statements_however_many_outcomes(
    database: Database, num_outcomes: int
) -> None:
    fences = claimed(database, num_outcomes)
    outcomes = [
        Outcome.succeeded(fence, answer()) if number % 4 else Outcome.released(fence)
        for number, fence in enumerate(fences)
    ]
    # Nothing runs before all of them are there.
    committer = Committer(database, Settings(flush_outcomes=64), (written := Written()).add)
    for outcome in outcomes:
        committer.put(outcome)
    with counting_statements(database) as statements:
        committer.start()
        written.wait_for(num_outcomes)
    committer.stop()
    assert written.flushes == [num_outcomes]
    assert len(statements) <= 4
    assert sum(results_per_job(database).values()) == sum(
        each.answer is not None for each in outcomes
    )


def test_sixty_four_answers_are_two_statements(database: Database) -> None:
    fences = claimed(database, 64)
    committer = Committer(database, Settings(), (written := Written()).add)
    for fence in fences:
        committer.put(Outcome.succeeded(fence, answer()))
    with counting_statements(database) as statements:
        committer.start()
        written.wait_for(64)
    committer.stop()
    assert statements == ["UPDATE", "INSERT"]


@pytest.mark.parametrize("said", UNKEPT)
def test_a_refused_result_does_not_take_the_others_with_it(database: Database, said: str) -> None:
    fences = claimed(database, 33)
    with committing(database, flush_outcomes=33, flush_seconds=60) as (committer, written):
        for number, fence in enumerate(fences):
            output = UNKEPT[said] if number == 17 else "fine"
            committer.put(Outcome.succeeded(fence, answer(output)))  # type: ignore[arg-type]
        written.wait_for(33)
    assert states(database) == {"succeeded": 32, "failed": 1}
    refused = job(database, fences[17].job_id)
    assert refused.error_code == "result_unkept"
    assert "secret" not in (refused.error_message or "")
    assert results_per_job(database) == {
        fence.job_id: int(number != 17) for number, fence in enumerate(fences)
    }


def test_while_the_database_refuses_commits_nothing_may_be_acked_and_afterwards_all(
    database: Database,
) -> None:
    fences = claimed(database, 5)
    with committing(database, flush_seconds=0.001) as (committer, written):
        with refusing_commits(database) as noticed:
            for fence in fences:
                committer.put(Outcome.succeeded(fence, answer()))
            assert noticed.wait(PATIENCE_SECONDS)
            assert written.outcomes == []
            assert committer.num_unwritten == 5
            assert states(database) == {"running": 5}
        written.wait_for(5)
    assert states(database) == {"succeeded": 5}
    assert set(results_per_job(database).values()) == {1}


def test_handing_over_an_outcome_never_blocks(database: Database) -> None:
    """Who hands over reads what an engine says, or sees to cancellations and limits."""
    fences = claimed(database, 6)
    with committing(database, flush_seconds=0.001, max_unwritten_outcomes=2) as (
        committer,
        written,
    ):
        with refusing_commits(database) as noticed:
            for fence in fences[:3]:
                committer.put(Outcome.succeeded(fence, answer()))
            for fence in fences[3:]:
                committer.put(Outcome.released(fence))
            assert noticed.wait(PATIENCE_SECONDS)
            assert committer.num_unwritten == 6
            assert committer.is_full
        written.wait_for(6)
        assert not committer.is_full
    assert states(database) == {"succeeded": 3, "queued": 3}


def test_a_stop_writes_what_is_buffered(database: Database) -> None:
    fences = claimed(database, 3)
    with committing(database, flush_seconds=3600) as (committer, written):
        for fence in fences:
            committer.put(Outcome.succeeded(fence, answer()))
    assert len(written.outcomes) == 3
    assert states(database) == {"succeeded": 3}


def test_a_stop_while_the_database_is_away_ends_and_acks_nothing(database: Database) -> None:
    (fence,) = claimed(database, 1)
    with refusing_commits(database), committing(database) as (committer, written):
        committer.put(Outcome.succeeded(fence, answer()))
    assert written.outcomes == []
    assert job(database, fence.job_id).state == JobState.RUNNING


def test_an_interactive_outcome_is_written_at_once_with_all_others(
    database: Database,
) -> None:
    bulk, interactive, later = claimed(database, 3)
    with committing(database, flush_seconds=3600) as (committer, written):
        committer.put(Outcome.succeeded(bulk, answer("one")))
        committer.put(Outcome.succeeded(interactive, answer("two")), is_urgent=True)
        written.wait_for(2)
        committer.put(Outcome.succeeded(later, answer("three")))
        assert written.flushes == [2]
    assert written.flushes == [2, 1]  # at its end


def test_the_last_running_jobs_are_written_at_once(database: Database) -> None:
    one, two = claimed(database, 2)
    written = Written()
    committer = Committer(
        database, Settings(flush_seconds=3600), written.add, lambda num_buffered: num_buffered >= 2
    )
    committer.start()
    committer.put(Outcome.succeeded(one, answer("one")))
    committer.put(Outcome.succeeded(two, answer("two")))
    written.wait_for(2)
    committer.stop()
    assert written.flushes == [2]


@pytest.mark.parametrize("stale_first", [False, True])
def test_a_flush_with_two_attempts_of_a_job_writes_the_newest(
    database: Database, stale_first: bool
) -> None:
    stale = claimed_job(database)
    end_lease(database, [stale.job_id])
    (current,) = claim(database, [stale.job_id])
    outcomes = [
        Outcome.succeeded(stale, answer("old")),
        Outcome.succeeded(current, answer("new")),
    ]
    with committing(database, flush_outcomes=2, flush_seconds=60) as (committer, written):
        for outcome in outcomes if stale_first else reversed(outcomes):
            committer.put(outcome)
        written.wait_for(2)
    with database.read() as session:
        assert session.scalars(select(Result.output)).all() == ["new"]


def test_the_answer_of_a_stale_attempt_is_not_kept_beside_a_release(database: Database) -> None:
    stale = claimed_job(database)
    end_lease(database, [stale.job_id])
    (current,) = claim(database, [stale.job_id])
    with committing(database, flush_outcomes=2, flush_seconds=60) as (committer, written):
        committer.put(Outcome.succeeded(stale, answer("old")))
        committer.put(Outcome.released(current))
        written.wait_for(2)
    assert results_per_job(database) == {stale.job_id: 0}
    assert job(database, stale.job_id).state == JobState.QUEUED


def test_an_answer_is_kept_whole(database: Database) -> None:
    (fence,) = claimed(database, 1)
    said = Answer(
        output="今天天气很好 \u2028 \U0001f40b",
        alternatives=("zwei", "drei"),
        finish_reason="length",
        prompt_tokens=7,
        completion_tokens=11,
        provenance={"revision": None, "settings": {"seed": 2**62}},
    )
    with committing(database) as (committer, written):
        committer.put(Outcome.succeeded(fence, said))
        written.wait_for(1)
    with database.read() as session:
        row = session.scalars(select(Result)).one()
    assert (row.output, row.alternatives) == (said.output, ["zwei", "drei"])
    assert (row.prompt_tokens, row.completion_tokens, row.finish_reason) == (7, 11, "length")
    assert row.provenance == said.provenance


def test_the_committer_is_woken_for_the_first_outcome_and_for_one_that_makes_a_flush_due(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    committer = Committer(database, Settings(flush_outcomes=4, flush_seconds=3600), Mock())
    notify = Mock()
    monkeypatch.setattr(committer._changed, "notify_all", notify)
    woken = []
    for number in range(6):
        notify.reset_mock()
        fence = Fence(uuid4(), 1, "one")
        committer.put(Outcome.failed(fence, "empty_prompt", ""), is_urgent=number == 2)
        woken.append(notify.called)
    # An urgent one is due, and so is whatever comes until it is written.
    assert woken == [True, False, True, True, True, True]
