"""Committer: writes outcomes, many in one transaction, and then lets their messages be acked."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.exc import DataError, IntegrityError, StatementError
from sqlalchemy.orm import Session

from db.outcome import Fence, FinishedRequest, FinishedSegment, Outcome
from db.queries import cache as cache_queries
from db.queries import model_cards
from db.queries.jobs import completion
from db.queries.jobs import segments as segment_queries
from db.queries.model_cards import model_card_id
from db.session import Database
from tasks.outage import Outage
from worker.backoff import backoff_seconds
from worker.bisection import run_in_halves
from worker.errors import ResultUnkept
from worker.failpoints import passing
from worker.settings import Settings

log = logging.getLogger(__name__)

# Between two tries while the database is away.
FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 5.0

MAX_REMEMBERED = 1024  # the most answers for the content cache in one commit
MAX_REMEMBERED_BYTES = 64 * 2**20  # held while the database is away; the oldest are dropped

Write = Outcome | FinishedSegment | FinishedRequest
AttemptId = tuple[UUID, int]
Written = Callable[[Sequence[Outcome]], None]


def flush_due(num_buffered: int, oldest_at: float, now: float, settings: Settings) -> bool:
    """Whether to commit now: enough outcomes, or one that has waited long enough."""
    if num_buffered == 0:
        return False
    return num_buffered >= settings.flush_outcomes or now - oldest_at >= settings.flush_seconds


def attempt_of(fence: Fence) -> AttemptId:
    return fence.job_id, fence.attempt


def by_owner(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Group outcomes by owner. In practice there is one, since a worker writes its own."""
    owners: dict[str, list[Outcome]] = {}
    for each in outcomes:
        owners.setdefault(each.fence.owner, []).append(each)
    return owners


class Committer:
    """A thread that writes outcomes; calls `on_written` after their commit.

    A flush that raises leaves its outcomes in the buffer and nothing acked. Running it again is
    harmless, because every write is fenced.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        on_written: Written,
        are_all: Callable[[int], bool] = lambda num_buffered: False,
        on_committed: Callable[[Sequence[Outcome], int], None] = lambda outcomes, num_fenced: None,
        ids_of: Callable[[Fence], dict[str, str]] = lambda fence: {"job_id": str(fence.job_id)},
    ) -> None:
        """are_all:      returns whether this number of outcomes is all there will be for now
        on_committed: called after a commit, before `on_written`, with the outcomes that changed
                      a row and the number that the fence refused
        ids_of:       returns the fields by which log lines name the job
        """
        self._database = database
        self._settings = settings
        self._on_written = on_written
        self._are_all = are_all
        self._on_committed = on_committed
        self._ids_of = ids_of
        self._buffer: deque[tuple[float, Outcome | FinishedSegment]] = deque()
        self._num_outcomes = 0  # in the buffer; the rest are segments
        self._remembered: deque[FinishedRequest] = deque()
        self._num_remembered_bytes = 0
        self.num_cached_bytes = 0  # that were written
        self._changed = threading.Condition()
        self._is_urgent = False  # something in the buffer
        self._model_cards: set[UUID] = set()  # those that are in the database
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, outcome: Outcome, is_urgent: bool = False) -> None:
        """Queue an outcome. Returns at once, even while the database is away.

        is_urgent: flush at once, with everything that waits

        The callers are an engine's reader, the heartbeat and a drain, none of which may block. The
        buffer is bounded because nothing is claimed while it is full.
        """
        with self._changed:
            self._num_outcomes += 1
            self._is_urgent |= is_urgent
            self._append(outcome)

    def keep(self, segment: FinishedSegment) -> None:
        """Queue a segment for a later flush. The caller never waits."""
        with self._changed:
            self._append(segment)

    def remember(self, finished: FinishedRequest) -> None:
        """Queue an answer for the content cache; it goes with the next commit.

        It is queued before its outcome or segment, and so is written no later.
        """
        with self._changed:
            self._remembered.append(finished)
            self._num_remembered_bytes += len(finished.output)
            while self._num_remembered_bytes > MAX_REMEMBERED_BYTES:
                self._num_remembered_bytes -= len(self._remembered.popleft().output)

    def _append(self, write: Outcome | FinishedSegment) -> None:
        self._buffer.append((time.monotonic(), write))
        # Not for each one: waking a thread that then only waits takes time from the engine.
        if len(self._buffer) == 1 or self._is_due(time.monotonic()):
            self._changed.notify_all()

    def stop(self) -> None:
        """Flush the buffer once and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def num_unwritten(self) -> int:
        with self._changed:
            return self._num_outcomes

    @property
    def is_full(self) -> bool:
        """Whether so many outcomes are unwritten that no more jobs should be claimed."""
        return self.num_unwritten >= self._settings.max_unwritten_outcomes

    def _is_due(self, now: float) -> bool:
        if not self._buffer:
            return False
        if self._is_urgent or (self._num_outcomes and self._are_all(self._num_outcomes)):
            return True
        oldest_at, _ = self._buffer[0]
        return flush_due(len(self._buffer), oldest_at, now, self._settings)

    def _run(self) -> None:
        away = Outage(log, "cannot write outcomes", "outcomes are written again")
        num_failures = 0
        while writes := self._next_flush():
            outcomes = [each for each in writes if isinstance(each, Outcome)]
            remembered = self._take_remembered()
            try:
                self._write([*remembered, *writes])
            except Exception as error:  # any error: this thread must not die
                self._give_back(remembered)
                away.began(error, num_outcomes=len(outcomes))
                self._model_cards.clear()  # a restored database may lack them
                if self._stopping:
                    return  # their leases expire, and another worker takes the jobs
                num_failures += 1
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._stopping,
                        backoff_seconds(num_failures, FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS),
                    )
                continue
            num_failures = 0
            away.ended()
            with self._changed:
                for _ in writes:
                    self._buffer.popleft()
                self._num_outcomes -= len(outcomes)
                self.num_cached_bytes += sum(len(each.output) for each in remembered)
                self._changed.notify_all()
            if len(outcomes) < len(writes):
                passing("kept")
            if outcomes:
                passing("committed")
                self._on_written(outcomes)
                passing("acked")

    def _take_remembered(self) -> list[FinishedRequest]:
        with self._changed:
            num = min(len(self._remembered), MAX_REMEMBERED)
            requests = [self._remembered.popleft() for _ in range(num)]
            self._num_remembered_bytes -= sum(len(each.output) for each in requests)
            return requests

    def _give_back(self, remembered: Sequence[FinishedRequest]) -> None:
        """Return entries to the buffer, for the next commit that succeeds."""
        with self._changed:
            self._remembered.extendleft(reversed(remembered))
            self._num_remembered_bytes += sum(len(each.output) for each in remembered)

    def _next_flush(self) -> list[Outcome | FinishedSegment]:
        """The outcomes to write next, which stay in the buffer; empty when the thread must end."""
        with self._changed:
            while not (self._stopping or self._is_due(now := time.monotonic())):
                if self._buffer:
                    oldest_at, _ = self._buffer[0]
                    self._changed.wait(oldest_at + self._settings.flush_seconds - now)
                else:
                    self._changed.wait()
            num = min(len(self._buffer), self._settings.flush_outcomes * 4)
            self._is_urgent = self._is_urgent and num < len(self._buffer)
            return [self._buffer[index][1] for index in range(num)]

    def _write(self, writes: Sequence[Write]) -> None:
        """Commit these; if the database refuses one, the others are still written."""
        run_in_halves(writes, self._commit, _is_refusal, self._on_refused)

    def _on_refused(self, refused: Write, error: Exception) -> None:
        if isinstance(refused, FinishedRequest):
            log.warning("answer not cached", extra={"error": type(error).__name__})
        elif isinstance(refused, FinishedSegment):
            # Only to save work later; the job goes on without.
            log.warning("segment refused", extra=self._ids_of(refused.fence))
        else:
            unkept = ResultUnkept(error)
            log.error("result refused", extra=self._ids_of(refused.fence))
            self._commit([Outcome.failed(refused.fence, unkept.code, str(unkept))])

    def _commit(self, writes: Sequence[Write]) -> None:
        outcomes = [each for each in writes if isinstance(each, Outcome)]
        segments = [each for each in writes if isinstance(each, FinishedSegment)]
        finished = [each for each in writes if isinstance(each, FinishedRequest)]
        ending = {attempt_of(each.fence) for each in outcomes}
        with self._database.write() as session:
            model_cards = self._write_model_cards(session, outcomes)
            running = self._running(
                session,
                [
                    *(each.fence for each in segments),
                    *(each.fence for each in finished if attempt_of(each.fence) not in ending),
                ],
            )
            self._write_segments(session, segments, running)
            written = [
                *self._write_answers(session, [each for each in outcomes if each.answer]),
                *self._write_others(session, [each for each in outcomes if not each.answer]),
            ]
            own = running | {attempt_of(each.fence) for each in written}
            self._write_finished(session, finished, own)
            passing("committing")
        self._model_cards |= model_cards
        if outcomes:
            self._on_committed(written, len(outcomes) - len(written))

    def _write_finished(
        self, session: Session, finished: Sequence[FinishedRequest], own: Set[AttemptId]
    ) -> None:
        """Write answers to the content cache, except those of cancelled attempts.

        The text of a cancelled job may have been erased. own: the attempts that may still write
        """
        # Unique by key, since PostgreSQL refuses two rows of one key in a statement. In order of
        # keys, and after every job is locked, so that two flushes cannot wait for each other.
        by_key = {each.key: each for each in finished if attempt_of(each.fence) in own}
        rows = [
            {
                "key": each.key,
                "tenant": each.tenant,
                "output": each.output,
                "num_bytes": len(each.output),
            }
            for _, each in sorted(by_key.items())
        ]
        if rows:
            session.execute(cache_queries.insert_entries(session), rows)

    def _running(self, session: Session, fences: Iterable[Fence]) -> set[AttemptId]:
        """The attempts that may still write."""
        attempts: dict[str, set[AttemptId]] = {}
        for fence in fences:
            attempts.setdefault(fence.owner, set()).add(attempt_of(fence))
        running: set[AttemptId] = set()
        for owner, own in attempts.items():
            rows = session.execute(segment_queries.running_among(owner, sorted(own)))
            running |= {(job_id, attempt) for job_id, attempt in rows}
        return running

    def _write_model_cards(self, session: Session, outcomes: Sequence[Outcome]) -> set[UUID]:
        """Insert the cards that this worker has not committed yet; returns their ids."""
        contents = {
            id(each.answer.model_card): each.answer.model_card
            for each in outcomes
            if each.answer is not None and each.answer.model_card is not None
        }
        cards = {model_card_id(content): content for content in contents.values()}
        # In order of id, and before any job is locked: two flushes cannot wait for each other.
        new = [
            {"id": card_id, "content": cards[card_id]}
            for card_id in sorted(cards.keys() - self._model_cards)
        ]
        if new:
            session.execute(model_cards.insert_model_cards(session), new)
        return set(cards)

    def _write_answers(self, session: Session, outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
        """Write the outcomes with answers; yields those that the fence accepted."""
        for owner, own in by_owner(outcomes).items():
            attempts = sorted((each.fence.job_id, each.fence.attempt) for each in own)
            # By attempt, not by job: a flush may have an old attempt besides the newest.
            changed = {tuple(row) for row in completion.succeed_attempts(session, owner, attempts)}
            written = [each for each in own if (each.fence.job_id, each.fence.attempt) in changed]
            if written:
                session.execute(completion.insert_results(), [result_row(each) for each in written])
            yield from written
            finished_ids = [each.fence.job_id for each in written if each.has_segments]
            if finished_ids:
                session.execute(segment_queries.delete_segments(finished_ids))

    def _write_segments(
        self, session: Session, segments: Sequence[FinishedSegment], running: Set[AttemptId]
    ) -> None:
        # Unique by position, since PostgreSQL refuses two rows of one key in a statement.
        rows = {
            (each.fence.job_id, each.position): {
                "job_id": each.fence.job_id,
                "position": each.position,
                "output": each.output,
            }
            for each in segments
            if attempt_of(each.fence) in running
        }
        if rows:
            session.execute(segment_queries.insert_segments(session), list(rows.values()))

    def _write_others(self, session: Session, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Write the outcomes without answers; returns those that the fence accepted."""
        if not outcomes:
            return []
        started_at = {
            (job_id, attempt): started_at
            for job_id, attempt, started_at in session.execute(completion.finish_attempts(outcomes))
        }
        written = [
            each for each in outcomes if (each.fence.job_id, each.fence.attempt) in started_at
        ]
        if written:
            rows = [
                attempt_row(each, started_at[each.fence.job_id, each.fence.attempt])
                for each in written
            ]
            session.execute(completion.insert_attempts(session), rows)
        return written


def _is_refusal(error: Exception) -> bool:
    """Whether the database or its driver refuses the values, as opposed to being away."""
    return isinstance(error, DataError | IntegrityError | UnicodeError | ValueError) or (
        type(error) is StatementError
    )


def result_row(outcome: Outcome) -> dict[str, Any]:
    assert outcome.answer is not None
    answer = outcome.answer
    return {
        "job_id": outcome.fence.job_id,
        "output": answer.output,
        "alternatives": list(answer.alternatives),
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "provenance": answer.provenance,
        "model_card_id": None if answer.model_card is None else model_card_id(answer.model_card),
        "coverage": answer.coverage,
        "left_out_characters": answer.left_out_characters,
        "cached_parts": answer.cached_parts,
        **answer.signals.to_row(),
        "reasoning": answer.reasoning,
        "reasoning_tokens": answer.reasoning_tokens,
    }


def attempt_row(outcome: Outcome, started_at: datetime | None) -> dict[str, Any]:
    return {
        "job_id": outcome.fence.job_id,
        "attempt": outcome.fence.attempt,
        "owner": outcome.fence.owner,
        "started_at": started_at,
        "next_state": outcome.state,
        "error_code": outcome.error_code,
        "error_message": outcome.error_message,
        "output": outcome.output,
    }
