"""Looks after what runs, every second: rights that were lost, time that ran out, engines that hang.

A running job is cancelled, expired or taken over in the database, by anybody;
that nobody needs to tell this worker is what makes those three safe. Here it
finds out.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable
from uuid import UUID

from db.outcome import Fence
from db.queries import claims
from db.session import Database
from worker.attempt import Attempt
from worker.engine_client import EngineClient
from worker.periodic_thread import Ticker
from worker.settings import Settings

log = logging.getLogger(__name__)


class Watch:
    """A thread of its own, so that a slow renewal delays no cancellation."""

    def __init__(
        self,
        database: Database,
        owner: str,
        settings: Settings,
        running: Callable[[], Collection[Attempt]],
        clients: Iterable[EngineClient],
    ) -> None:
        self._database = database
        self._owner = owner
        self._settings = settings
        self._running = running
        self._clients = tuple(clients)
        self._ticker = Ticker("watch", settings.watch_seconds, self._tick)

    def start(self) -> None:
        self._ticker.start()

    def stop(self) -> None:
        self._ticker.stop()

    def _tick(self) -> None:
        self.look(time.monotonic())

    def look(self, now: float) -> None:
        running = [attempt for attempt in self._running() if not attempt.is_over]
        for attempt in running:
            attempt.fail_if_overdue(now)
        for client in self._clients:
            client.kill_if_stalled(now, self._settings.stall_seconds)
        if not running:
            return
        with self._database.read() as session:
            rights: dict[UUID, int] = dict(
                session.execute(claims.running_attempts(self._owner)).all()
            )
        # Over by now: committed while we asked.
        lost = [each for each in running if not holds(rights, each.fence) and not each.is_over]
        for attempt in lost:
            attempt.abandon()
        if lost:
            log.info("attempts abandoned", extra={"num_jobs": len(lost)})


def holds(rights: dict[UUID, int], fence: Fence) -> bool:
    return rights.get(fence.job_id) == fence.attempt
