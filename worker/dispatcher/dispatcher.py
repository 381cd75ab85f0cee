"""Dispatcher: the tick. It leads, rescues, publishes and chooses the time of the next tick.

The package's docstring argues why this is safe.
"""

import math
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from db.session import Database
from worker.dispatcher.backlog import Backlog
from worker.dispatcher.broker import Broker
from worker.dispatcher.leader import Leader
from worker.dispatcher.notification_listener import NotificationListener
from worker.dispatcher.rescuer import Rescuer
from worker.failpoints import passing
from worker.metrics.metrics import NO_METRICS, Metrics
from worker.periodic_thread import PeriodicThread
from worker.settings import Settings

BUSY_SECONDS = 0.05  # least time between two ticks


class Dispatcher:
    """A thread with its own connection to the broker, and a listener thread."""

    def __init__(
        self,
        database: Database,
        owner: str,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        """clock: returns monotonic seconds"""
        self._poll_seconds = settings.dispatch_seconds
        self._clock = clock
        self._polled_at = -math.inf
        self._broker = Broker()
        self._leader = Leader(database, owner, settings.lead_seconds, clock)
        self._rescuer = Rescuer(database, self._broker, settings.lost_seconds, metrics)
        self._backlog = Backlog(database, settings.jobs_per_message, clock, metrics)
        self._thread = PeriodicThread("dispatcher", self._poll_seconds, self.tick, BUSY_SECONDS)
        self._listener = NotificationListener(self._on_notification)

    def start(self) -> None:
        self._thread.start()
        self._thread.wake()  # jobs may have waited for a worker
        self._listener.start()

    def stop(self) -> None:
        """End both threads and resign the leadership."""
        self._listener.stop()
        self._thread.stop()
        self._broker.close()
        self._leader.resign()

    @property
    def leads(self) -> bool:
        """Whether this worker led at the last tick."""
        return self._leader.leads

    def _on_notification(self) -> None:
        # Every worker is notified; only the leader acts.
        if self._leader.leads:
            self._thread.wake()

    def tick(self) -> float:
        """Poll if it is due, else publish if this worker leads; returns seconds to wait."""
        now = self._clock()
        until_poll_seconds = self._polled_at + self._poll_seconds - now
        try:
            if self._leader.leads and until_poll_seconds > 0:
                # Between two polls, because more jobs are needed or a notification arrived: the
                # term still runs, and nothing needs rescuing yet.
                self._backlog.publish()
            else:
                self.poll()
                self._polled_at = now
                until_poll_seconds = self._poll_seconds
        except SQLAlchemyError:
            raise  # a leader without the database is succeeded at the end of its term
        except Exception:
            # Redis is unreachable from here; another worker may reach it.
            self._leader.resign()
            raise
        until_needed_seconds = (
            self._backlog.until_needed_seconds if self._leader.leads else math.inf
        )
        return max(BUSY_SECONDS, min(until_needed_seconds, until_poll_seconds))

    def poll(self) -> int:
        """Rescue and publish due jobs, if this worker leads; returns the number published."""
        if not self._leader.keep():
            return 0
        passing("leading")
        self._rescuer.rescue()
        return self._backlog.publish()
