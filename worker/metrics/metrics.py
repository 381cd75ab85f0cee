"""Metrics: the events of a worker.

This base class counts nothing and serves when metrics are off.
"""

from collections.abc import Iterable
from typing import Literal

from db.outcome import Outcome
from tasks.quarantine import EndedJob

CacheResult = Literal["hit", "miss", "joined"]


class Metrics:
    """Called at events, from any thread, after the commit that makes them true.

    No call may raise: a worker does not depend on its metrics.
    """

    def count_outcome(
        self, task: str, model: str, outcome: Outcome, wait_seconds: float, run_seconds: float
    ) -> None:
        """Count an attempt that ended in the database. wait_seconds: from the job's submission"""

    def count_refused(self, jobs: Iterable[EndedJob]) -> None:
        """Count messages that could not be run and were stored as ended jobs."""

    def count_fenced(self, num: int) -> None:
        """Count outcomes that the fence refused, since another attempt had the job by then."""

    def count_lost(self, num: int) -> None:
        """Count attempts that were abandoned: cancelled, overdue or taken over."""

    def count_expired_leases(self, num: int) -> None:
        """Count jobs of silent workers that the leader requeued."""

    def count_expired(self, jobs: Iterable[tuple[str, str]]) -> None:
        """Count jobs that the leader ended at their deadline. jobs: (task, model) of each"""

    def count_published(self, model: str, lane: str, num: int) -> None:
        """Count job ids that the dispatcher published."""

    def count_cache(self, task: str, model: str, result: CacheResult) -> None:
        """Count a look-up in the content cache. joined: an equal request was already running"""

    def start(self) -> None:
        """Start to serve the metrics."""

    def stop(self) -> None:
        """Stop serving. May be called twice, or without `start`."""


NO_METRICS = Metrics()
