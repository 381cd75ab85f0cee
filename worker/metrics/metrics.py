"""Events of a worker that can be counted. The base class counts nothing: metrics are off."""

from collections.abc import Iterable
from typing import Literal

from db.outcome import Outcome
from tasks.quarantine import EndedJob

CacheResult = Literal["hit", "miss", "joined"]


class Metrics:
    """Called at events, by any thread, after the commit that makes them true.

    No call may raise: nothing that a worker does depends on being counted.
    """

    def count_outcome(
        self, task: str, model: str, outcome: Outcome, wait_seconds: float, run_seconds: float
    ) -> None:
        """An attempt ended, and the database has it. wait_seconds: of its job, since submitted."""

    def count_refused(self, jobs: Iterable[EndedJob]) -> None:
        """Messages that were no jobs to run are kept as jobs that have ended."""

    def count_fenced(self, num: int) -> None:
        """Outcomes came to nothing, for the jobs were another attempt's by then."""

    def count_lost(self, num: int) -> None:
        """Attempts were given up here: cancelled, past their deadline, or taken over."""

    def count_expired_leases(self, num: int) -> None:
        """The leader put jobs of silent workers back in line."""

    def count_expired(self, jobs: Iterable[tuple[str, str]]) -> None:
        """The leader ended jobs whose deadline has passed; (task, model) of each."""

    def count_published(self, model: str, lane: str, num: int) -> None:
        """The dispatcher sent out ids of jobs."""

    def count_cache(self, task: str, model: str, result: CacheResult) -> None:
        """A job asked the cache of answers. joined: another job is about to have the answer."""

    def start(self) -> None:
        """Begin to serve them."""

    def stop(self) -> None:
        """May be called twice, or without `start`."""


NO_METRICS = Metrics()
