"""Heartbeat: the periodic duties of a worker, on one thread.

Every second it ends attempts that ran out of time or lost their right to write, and engines that
hang. Every fifteen seconds it renews the leases of running jobs and reports that the worker lives.

A running job is cancelled, expired or taken over in the database, without a message to its worker.
That makes the three safe; here the worker notices.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from db.outcome import Fence
from db.queries import worker_registry
from db.queries.jobs import leases
from db.session import Database
from worker.attempts.attempt import Attempt
from worker.engines.engine_client import EngineClient
from worker.metrics.metrics import NO_METRICS, Metrics
from worker.periodic_thread import PeriodicThread
from worker.settings import Settings

log = logging.getLogger(__name__)


class Heartbeat:
    """A thread of its own, so that no drain or long step delays the renewal of leases.

    Duties without the database come first in a beat, so that an outage hides no hanging engine.
    Leases are renewed even if an earlier duty fails.
    """

    def __init__(
        self,
        database: Database,
        owner: str,
        settings: Settings,
        *,
        running: Callable[[], Collection[Attempt]],
        clients: Iterable[EngineClient],
        capacity: Callable[[], Mapping[str, int]],
        engines: Callable[[], list[dict[str, Any]]],
        metrics: Metrics = NO_METRICS,
    ) -> None:
        """capacity, engines: return this worker's report"""
        self._database = database
        self._owner = owner
        self._settings = settings
        self._running = running
        self._clients = tuple(clients)
        self._capacity = capacity
        self._engines = engines
        self._metrics = metrics
        self._renewed_at = -math.inf
        # The first beat comes no later than any other.
        first_seconds = min(settings.watch_seconds, settings.renew_seconds)
        self._thread = PeriodicThread("heartbeat", first_seconds, self._beat)

    def start(self) -> None:
        """Report this worker once, to check that the database accepts it, and start the thread."""
        self.report()
        self._renewed_at = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End the thread and remove this worker from the live ones."""
        self._thread.stop()
        try:
            with self._database.write() as session:
                session.execute(worker_registry.forget_worker(self._owner))
        except SQLAlchemyError as error:
            log.warning("cannot sign off", extra={"error": type(error).__name__})

    def _beat(self) -> float:
        return self.beat(time.monotonic())

    def beat(self, now: float) -> float:
        """Do the duties that are due at a monotonic time; returns seconds to wait."""
        self.end_overdue(now)
        try:
            self.end_lost()
        finally:
            if now >= self._renewed_at + self._settings.renew_seconds:
                self.renew()
                self.report()
                self._renewed_at = now
        until_renewal_seconds = self._renewed_at + self._settings.renew_seconds - now
        return min(self._settings.watch_seconds, until_renewal_seconds)

    def end_overdue(self, now: float) -> None:
        """Fail attempts past their time limit, and kill engines that are silent for too long."""
        for attempt in self._unfinished():
            attempt.fail_if_overdue(now)
        for client in self._clients:
            client.kill_if_stalled(now, self._settings.stall_seconds)

    def end_lost(self) -> None:
        """Abandon attempts that may no longer write: cancelled, expired or taken over."""
        running = self._unfinished()
        if not running:
            return
        with self._database.read() as session:
            rights: dict[UUID, int] = dict(
                session.execute(leases.running_attempts(self._owner)).all()
            )
        # An attempt may have been committed while the database was asked.
        lost = [each for each in running if not holds(rights, each.fence) and not each.is_over]
        for attempt in lost:
            attempt.abandon()
        if lost:
            self._metrics.count_lost(len(lost))
            log.info("attempts abandoned", extra={"num_jobs": len(lost)})

    def report(self) -> None:
        """Report that this worker lives, what it runs and its capacity."""
        with self._database.write() as session:
            worker_registry.report_worker(
                session,
                self._owner,
                self._capacity(),
                len(self._running()),
                self._settings.lease_seconds,
                self._engines(),
            )

    def renew(self) -> None:
        """Renew the lease of every running attempt in one statement."""
        job_ids = sorted(attempt.fence.job_id for attempt in self._running())
        if job_ids:
            with self._database.write() as session:
                session.execute(
                    leases.renew_leases(self._owner, job_ids, self._settings.lease_seconds)
                )

    def _unfinished(self) -> list[Attempt]:
        return [attempt for attempt in self._running() if not attempt.is_over]


def holds(rights: Mapping[UUID, int], fence: Fence) -> bool:
    """Whether the database still has this attempt as its job's running one."""
    return rights.get(fence.job_id) == fence.attempt
