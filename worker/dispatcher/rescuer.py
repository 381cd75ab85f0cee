"""Rescuer: requeues jobs that died or were lost, and ends overdue ones."""

import logging

from sqlalchemy.orm import Session

from db.clock import seconds_from_now
from db.lane import Lane
from db.queries.jobs import completion, dispatch, leases
from db.session import Database
from db.states import JobState
from tasks.queues import queue_name
from worker.dispatcher.broker import Broker
from worker.metrics.metrics import NO_METRICS, Metrics

log = logging.getLogger(__name__)

MAX_RESCUED_AT_ONCE = 4096  # of one statement


class Rescuer:
    """Publishes nothing itself: a job that it requeues or unpublishes is due again."""

    def __init__(
        self,
        database: Database,
        broker: Broker,
        lost_seconds: float,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        """lost_seconds: a job published this long ago counts as lost if its queue is empty"""
        self._database = database
        self._broker = broker
        self._lost_seconds = lost_seconds
        self._metrics = metrics

    def rescue(self) -> None:
        """Rescue all jobs that need it.

        It reads first, since there is hardly ever anything to write.
        """
        with self._database.read() as session:
            has_run_out = session.scalar(dispatch.has_run_out())
            waiting = session.execute(dispatch.published_long_ago(self._lost_seconds)).all()
        if has_run_out:
            with self._database.write() as session:
                num_left = _requeue_expired_leases(session)
                overdue = _expire_overdue(session)
            self._metrics.count_expired_leases(num_left)
            self._metrics.count_expired(overdue)
        if self._broker.lost_its_data():
            log.warning("the broker has no marker: publishing all queued jobs again")
            self._unpublish(None, 0)
            return
        for model, lane in waiting:
            if self._broker.num_messages(queue_name(model, Lane(lane))) == 0:
                log.warning("messages lost", extra={"model": model, "lane": lane})
                self._unpublish((model, Lane(lane)), self._lost_seconds)

    def _unpublish(self, queue: tuple[str, Lane] | None, age_seconds: float) -> None:
        with self._database.write() as session:
            session.execute(dispatch.unpublish_queued(queue, seconds_from_now(-age_seconds)))


def _requeue_expired_leases(session: Session) -> int:
    requeued = session.execute(leases.requeue_expired_leases(MAX_RESCUED_AT_ONCE)).all()
    if not requeued:
        return 0
    log.warning("leases expired", extra={"num_jobs": len(requeued)})
    session.execute(
        completion.insert_attempts(session),
        [
            {
                "job_id": job_id,
                "attempt": attempt,
                "owner": None,
                "started_at": started_at,
                "next_state": JobState.QUEUED,
                "error_code": "lease_expired",
                "error_message": "the worker stopped renewing its lease",
            }
            for job_id, attempt, started_at in requeued
        ],
    )
    return len(requeued)


def _expire_overdue(session: Session) -> list[tuple[str, str]]:
    """End overdue jobs. Returns (task, model) of each."""
    rows = session.execute(dispatch.expire_overdue(MAX_RESCUED_AT_ONCE))
    overdue = [(task, model) for _, task, model in rows]
    if overdue:
        log.info("deadlines passed", extra={"num_jobs": len(overdue)})
    return overdue
