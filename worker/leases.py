"""Renews the leases of running attempts, and says that this worker lives."""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from db.queries import claims, worker_registry
from db.session import Database
from worker.attempt import Attempt
from worker.periodic_thread import Ticker
from worker.settings import Settings

log = logging.getLogger(__name__)


class Leases:
    """A thread of its own, so that no drain or long step keeps a lease from being renewed."""

    def __init__(
        self,
        database: Database,
        owner: str,
        room: Callable[[], Mapping[str, int]],
        engines: Callable[[], list[dict[str, Any]]],
        settings: Settings,
        running: Callable[[], Collection[Attempt]],
    ) -> None:
        self._database = database
        self._owner = owner
        self._room = room
        self._engines = engines
        self._settings = settings
        self._running = running
        self._ticker = Ticker("leases", settings.renew_seconds, self._tick)

    def start(self) -> None:
        """Report this worker once, so that the database is known to take it, and go on."""
        self._report()
        self._ticker.start()

    def stop(self) -> None:
        self._ticker.stop()
        try:
            with self._database.write() as session:
                session.execute(worker_registry.forget_worker(self._owner))
        except SQLAlchemyError as error:
            log.warning("cannot sign off", extra={"error": type(error).__name__})

    def _tick(self) -> None:
        self._report()
        self.renew()

    def _report(self) -> None:
        with self._database.write() as session:
            worker_registry.report_worker(
                session,
                self._owner,
                self._room(),
                len(self._running()),
                self._settings.lease_seconds,
                self._engines(),
            )

    def renew(self) -> None:
        """Renew every lease in one statement. Attempts that lost theirs are found by the watch."""
        job_ids = sorted(attempt.fence.job_id for attempt in self._running())
        if job_ids:
            with self._database.write() as session:
                session.execute(
                    claims.renew_leases(self._owner, job_ids, self._settings.lease_seconds)
                )
