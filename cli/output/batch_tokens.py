"""Tokens of a batch: how many of its work are done, and how many there are.

Of what is finished the tokens are known; what is not yet has about as many for each character
of its source as those of the same model and task have had. So a document of a thousand pages
counts for what it is, which a number of jobs does not.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from uuid import UUID

from db.queries import throughput
from db.states import FINISHED, JobState
from tasks.configuration import settings

LOOK_SECONDS = 1.0  # it reads every row of the batch
TOKENS_PER_CHARACTER = 0.25  # until anything has been measured


@dataclass(frozen=True, slots=True)
class TokensDone:
    """finished: of the jobs at their end; total: of all."""

    finished: float
    total: float


@dataclass(frozen=True, slots=True)
class Kind:
    """The jobs of one model and task that are in one state."""

    model: str
    task: str
    state: str
    num_jobs: int
    num_characters: int
    num_tokens: int | None  # of their results


def tokens_done(kinds: Iterable[Kind]) -> TokensDone:
    """The tokens that a batch's jobs will have and already have, of all requests, both ways."""
    kinds = list(kinds)
    measured = [kind for kind in kinds if kind.state == JobState.SUCCEEDED and kind.num_tokens]
    usual = _ratio(measured)
    finished = total = 0.0
    for kind in kinds:
        alike = [each for each in measured if (each.model, each.task) == (kind.model, kind.task)]
        # One for each job, so that an empty text is not nothing.
        num_tokens = (_ratio(alike) or usual or TOKENS_PER_CHARACTER) * kind.num_characters
        num_tokens += kind.num_jobs
        total += num_tokens
        finished += num_tokens if kind.state in FINISHED else 0.0
    return TokensDone(finished, total)


def _ratio(kinds: Iterable[Kind]) -> float | None:
    """Tokens of a character, in results of these."""
    kinds = list(kinds)
    num_characters = sum(kind.num_characters for kind in kinds)
    num_tokens = sum(kind.num_tokens or 0 for kind in kinds)
    return num_tokens / num_characters if num_characters and num_tokens else None


class BatchTokens:
    """Looks at a batch no oftener than is worth it."""

    def __init__(self, batch_id: UUID, clock: Callable[[], float] = time.monotonic) -> None:
        self._batch_id = batch_id
        self._clock = clock
        self._looked_at: float | None = None
        self._done = TokensDone(0.0, 1.0)

    def at(self, is_over: bool) -> TokensDone:
        """The progress of the batch; is_over: none of its jobs is unfinished."""
        now = self._clock()
        if is_over or self._looked_at is None or now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            with settings.database().read() as session:
                rows = session.execute(throughput.progress_by_kind(self._batch_id)).all()
            self._done = tokens_done(Kind(*row) for row in rows)
            if is_over:
                self._done = TokensDone(self._done.total, self._done.total)
        return self._done
