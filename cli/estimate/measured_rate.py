"""MeasuredRate: tokens per second and tokens per character in a model's recent results."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from db.queries import throughput
from db.session import Database

MAX_RESULTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRate:
    """The rate of one model and task, over all tokens of all requests, prompts and answers."""

    num_results: int
    num_characters: int  # of the sources
    prompt_tokens: int
    completion_tokens: int
    busy_seconds: float  # in which at least one of the jobs ran
    characters_per_part: float | None  # of documents in several; None: there was none

    @classmethod
    def of(cls, database: Database, model: str, task: str) -> Self | None:
        """The rate of the newest results; None without any."""
        with database.read() as session:
            rows = session.execute(throughput.recent_results(model, task, MAX_RESULTS)).all()
        if not rows:
            return None
        in_parts = [row.coverage for row in rows if row.coverage and row.coverage["parts"] > 1]
        num_parts = sum(each["parts"] for each in in_parts)
        return cls(
            num_results=len(rows),
            num_characters=sum(row.num_characters for row in rows),
            prompt_tokens=sum(row.prompt_tokens or 0 for row in rows),
            completion_tokens=sum(row.completion_tokens or 0 for row in rows),
            busy_seconds=busy_seconds(
                (row.started_at, row.finished_at)
                for row in rows
                if row.started_at is not None and row.finished_at is not None
            ),
            characters_per_part=(
                sum(each["source_characters"] for each in in_parts) / num_parts
                if num_parts
                else None
            ),
        )

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second; None if there are too few results."""
        return self.tokens / self.busy_seconds if self.busy_seconds > 0 and self.tokens else None

    @property
    def characters_per_token(self) -> float | None:
        return self.num_characters / self.prompt_tokens if self.prompt_tokens else None

    def tokens_of(self, num_characters: int) -> float:
        """The expected tokens of all requests for a source of this length."""
        return num_characters * self.tokens / max(self.num_characters, 1)


def busy_seconds(runs: Iterable[tuple[datetime, datetime]]) -> float:
    """Seconds in which at least one of these jobs ran: overlaps count once, pauses do not count."""
    total, until = 0.0, None
    for start, end in sorted(runs):
        begin = start if until is None or start > until else until
        if end > begin:
            total += (end - begin).total_seconds()
            until = end
    return total
