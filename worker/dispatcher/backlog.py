"""Backlog: publishes queued jobs as the workers' queues run down."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from uuid import UUID

from sqlalchemy.orm import Session

from db.lane import Lane
from db.queries import worker_registry
from db.queries.jobs import dispatch
from db.session import Database
from tasks.submission.publisher import JobMessage, publish
from worker.dispatcher.queue_target import QueueTarget, seconds_until_needed
from worker.failpoints import passing
from worker.metrics.metrics import NO_METRICS, Metrics

SUBMITTER_SECONDS = 2.0  # the submitter of an interactive job publishes it itself
MAX_PUBLISHED_AT_ONCE = 4096


class Backlog:
    """Publishes due jobs up to each queue's target."""

    def __init__(
        self,
        database: Database,
        jobs_per_message: int,
        clock: Callable[[], float],
        metrics: Metrics = NO_METRICS,
    ) -> None:
        """clock: returns monotonic seconds"""
        self._database = database
        self._jobs_per_message = jobs_per_message
        self._clock = clock
        self._metrics = metrics
        self._filled_at = -math.inf  # the last time that something was published
        self.until_needed_seconds = math.inf  # until more should be, as of the last `publish`

    def publish(self) -> int:
        """Publish every due interactive job, and bulk jobs up to the targets.

        Returns the number of jobs; raises the transport's error when Redis is away.
        """
        filled_seconds = self._clock() - self._filled_at
        with self._database.read() as session:
            targets = target_by_model(session)
            messages = list(self._due(session, targets))
        self.until_needed_seconds = seconds_until_needed(
            targets, num_bulk_jobs(messages), filled_seconds
        )
        if not messages:
            return 0
        # Publish first, then mark: after a death in between a job is published twice, and the
        # second message finds it claimed.
        publish(messages)
        passing("published")
        job_ids = sorted(job_id for message in messages for job_id in message.job_ids)
        with self._database.write() as session:
            dispatch.mark_published(session, job_ids)
        for message in messages:
            self._metrics.count_published(message.model, message.lane, len(message.job_ids))
        self._filled_at = self._clock()
        return len(job_ids)

    def _due(self, session: Session, targets: Mapping[str, QueueTarget]) -> Iterator[JobMessage]:
        for model, target in targets.items():
            for job_id, _ in session.execute(
                dispatch.next_to_publish(
                    model, Lane.INTERACTIVE, MAX_PUBLISHED_AT_ONCE, SUBMITTER_SECONDS
                )
            ):
                yield JobMessage(model, Lane.INTERACTIVE, (job_id,))
            num_missing = min(target.num_missing, MAX_PUBLISHED_AT_ONCE)
            # Only whole messages: while the workers have enough at hand, a few missing jobs can
            # wait for more.
            if num_missing >= max(1, min(self._jobs_per_message, target.num_wanted)):
                jobs = session.execute(dispatch.next_to_publish(model, Lane.BULK, num_missing))
                for job_ids in in_messages(jobs, self._jobs_per_message):
                    yield JobMessage(model, Lane.BULK, job_ids)


def target_by_model(session: Session) -> dict[str, QueueTarget]:
    """The total target of each model over the live workers."""
    num_wanted: Counter[str] = Counter()
    for of_one in session.scalars(worker_registry.room_of_live_workers()):
        num_wanted.update(of_one)
    num_out = dict(session.execute(dispatch.outstanding_by_model()).all())
    return {model: QueueTarget(num, num_out.get(model, 0)) for model, num in num_wanted.items()}


def num_bulk_jobs(messages: Iterable[JobMessage]) -> Counter[str]:
    """The number of bulk jobs in messages, by model."""
    num_jobs: Counter[str] = Counter()
    for message in messages:
        if message.lane is Lane.BULK:
            num_jobs[message.model] += len(message.job_ids)
    return num_jobs


def in_messages(
    jobs: Iterable[tuple[UUID, int]], jobs_per_message: int
) -> Iterator[tuple[UUID, ...]]:
    """Group (id, number of characters) so that jobs of similar length share a message."""
    by_length = [job_id for job_id, _ in sorted(jobs, key=lambda job: job[1])]
    for start in range(0, len(by_length), jobs_per_message):
        yield tuple(by_length[start : start + jobs_per_message])
