"""BatchTokens: the progress of a batch in tokens, done and in all.

The tokens of finished jobs are known; for the others they are estimated by tokens per character in
results of the same model and task. So a document of a thousand pages counts as much as its work,
which a count of jobs would not show, and the finished parts of a running document count already.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from db.encryption.key_ring import Unopenable
from db.queries import throughput
from db.states import FINISHED, JobState
from tasks.configuration import settings

POLL_SECONDS = 1.0  # it reads every row of the batch
MAX_SAMPLED = 64  # parts of running jobs, to see how many tokens one has
ALMOST = 0.99  # of a job that runs, however many parts it has finished
TOKENS_PER_CHARACTER = 0.25  # until anything has been measured


@dataclass(frozen=True, slots=True)
class TokensDone:
    """The tokens of finished work, and the total."""

    finished: float
    total: float


@dataclass(frozen=True, slots=True)
class Kind:
    """The jobs of one model and task in one state."""

    model: str
    task: str
    state: str
    num_jobs: int
    num_characters: int
    num_tokens: int | None  # of their results


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A running job with finished parts."""

    model: str
    task: str
    num_characters: int
    num_tokens: float  # of those parts


def tokens_done(kinds: Iterable[Kind], running: Iterable[RunningJob] = ()) -> TokensDone:
    """The tokens of all requests of a batch's jobs, prompts and answers."""
    kinds = list(kinds)
    measured = [kind for kind in kinds if kind.state == JobState.SUCCEEDED and kind.num_tokens]
    usual = _ratio(measured)

    def guess(model: str, task: str, num_characters: int) -> float:
        alike = [each for each in measured if (each.model, each.task) == (model, task)]
        return (_ratio(alike) or usual or TOKENS_PER_CHARACTER) * num_characters

    finished = total = 0.0
    for kind in kinds:
        # One for each job, so that an empty text is not nothing.
        num_tokens = guess(kind.model, kind.task, kind.num_characters) + kind.num_jobs
        total += num_tokens
        finished += num_tokens if kind.state in FINISHED else 0.0
    for job in running:
        most = ALMOST * guess(job.model, job.task, job.num_characters)
        finished += min(job.num_tokens, most)
    return TokensDone(finished, total)


def _ratio(kinds: Iterable[Kind]) -> float | None:
    """The tokens per character in these results; None without any."""
    kinds = list(kinds)
    num_characters = sum(kind.num_characters for kind in kinds)
    num_tokens = sum(kind.num_tokens or 0 for kind in kinds)
    return num_tokens / num_characters if num_characters and num_tokens else None


class BatchTokens:
    """Queries a batch's progress, at a bounded rate."""

    def __init__(self, batch_id: UUID, clock: Callable[[], float] = time.monotonic) -> None:
        self._batch_id = batch_id
        self._clock = clock
        self._looked_at: float | None = None
        self._done = TokensDone(0.0, 1.0)

    def at(self, is_over: bool) -> TokensDone:
        """The progress of the batch. is_over: whether all of its jobs have ended"""
        now = self._clock()
        if is_over or self._looked_at is None or now - self._looked_at >= POLL_SECONDS:
            self._looked_at = now
            with settings.database().read() as session:
                rows = session.execute(throughput.progress_by_kind(self._batch_id)).all()
                running = [] if is_over else self._running(session)
            self._done = tokens_done([Kind(*row) for row in rows], running)
            if is_over:
                self._done = TokensDone(self._done.total, self._done.total)
        return self._done

    def _running(self, session: Session) -> list[RunningJob]:
        rows = session.execute(throughput.finished_parts(self._batch_id)).all()
        if not rows:
            return []
        try:
            parts = session.execute(
                throughput.some_parts([row[0] for row in rows], MAX_SAMPLED)
            ).all()
        except Unopenable:  # it is only an estimate
            return []
        own: dict[UUID, list[int]] = {}
        for job_id, segment in parts:
            own.setdefault(job_id, []).append(_tokens_of(segment["output"]))
        every = [num_tokens for each in own.values() for num_tokens in each]
        return [
            RunningJob(model, task, num_characters, num_parts * mean(own.get(job_id, every)))
            for job_id, model, task, num_characters, num_parts in rows
        ]


def _tokens_of(output: Mapping[str, Any]) -> int:
    """The tokens of one request, prompt and answer."""
    return int(output["prompt_tokens"]) + sum(int(tokens) for _, _, tokens, *_ in output["choices"])
