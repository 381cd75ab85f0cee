"""CacheUpkeep: removes expired and least recently used entries of the content cache."""

import logging
from collections.abc import Callable, Sequence

from sqlalchemy.exc import SQLAlchemyError

from db.queries import cache as cache_queries
from db.queries.jobs import dispatch
from db.session import Database
from worker.cache.content_cache import ContentCache
from worker.periodic_thread import PeriodicThread

log = logging.getLogger(__name__)

TICK_SECONDS = 60.0
REST_SECONDS = 1.0  # least time between two ticks
TOUCH_SECONDS = 3600.0  # the resolution of the time of use
SHARE = 100  # the bound is checked after one part in so many of it was written
BATCH = 256  # entries of one transaction
LEADERSHIP = "cache"
LEAD_SECONDS = 60.0


class CacheUpkeep:
    """A thread in every worker; one worker at a time removes entries.

    The bound is exceeded by at most what workers write before the next check: a hundredth each.
    """

    def __init__(
        self, database: Database, owner: str, cache: ContentCache, num_written: Callable[[], int]
    ) -> None:
        """num_written: returns the bytes that this worker has written so far"""
        self._database = database
        self._owner = owner
        self._cache = cache
        self._settings = cache.settings
        self._num_written = num_written
        self._num_written_before = 0
        self._thread = PeriodicThread("cache-upkeep", TICK_SECONDS, self.tick, REST_SECONDS)

    def start(self) -> None:
        if self._settings.enabled:
            self._thread.start()
            self._thread.wake()

    def stop(self) -> None:
        self._thread.stop()

    def notice(self) -> None:
        """Check soon, if enough was written since the last check."""
        if self._num_written() - self._num_written_before > self._settings.max_bytes // SHARE:
            self._thread.wake()

    def tick(self) -> None:
        self._cache.forget_old()  # first, for it needs no database
        self._num_written_before = self._num_written()
        self._note_used(self._cache.take_used())
        # Reading comes first, for there is hardly ever anything to remove.
        if (self._expired() or self._excess_bytes() > 0) and self._leads():
            try:
                self.trim()
            finally:
                self._resign()

    def trim(self) -> int:
        """Remove expired entries and those beyond the bound; returns how many."""
        num_removed = 0
        while keys := self._expired():
            removed = self._forget(keys)
            num_removed += removed
            if not removed:
                break  # another transaction has locked them
        excess = self._excess_bytes()
        while excess > 0:
            entries = self._oldest(excess)
            removed = self._forget(sorted(entries))
            num_removed += removed
            excess -= sum(entries.values())
            if not removed:
                break
        if num_removed:
            log.info("cache trimmed", extra={"num_entries": num_removed})
        return num_removed

    def _note_used(self, keys: Sequence[bytes]) -> None:
        for start in range(0, len(keys), BATCH):
            with self._database.write() as session:
                session.execute(cache_queries.touch(keys[start : start + BATCH], TOUCH_SECONDS))

    def _expired(self) -> list[bytes]:
        with self._database.read() as session:
            keys = session.scalars(cache_queries.expired(self._settings.ttl_seconds, BATCH))
            return sorted(keys)

    def _excess_bytes(self) -> int:
        with self._database.read() as session:
            return (session.scalar(cache_queries.total_bytes()) or 0) - self._settings.max_bytes

    def _oldest(self, num_bytes: int) -> dict[bytes, int]:
        """The least recently used entries with their sizes: `num_bytes` of them, or one batch."""
        entries: dict[bytes, int] = {}
        with self._database.read() as session:
            for key, size in session.execute(cache_queries.least_recently_used(BATCH)):
                entries[key] = size
                if (num_bytes := num_bytes - size) <= 0:
                    break
        return entries

    def _forget(self, keys: Sequence[bytes]) -> int:
        with self._database.write() as session:
            return len(session.scalars(cache_queries.forget(keys)).all())

    def _leads(self) -> bool:
        with self._database.write() as session:
            return dispatch.lead(session, LEADERSHIP, self._owner, LEAD_SECONDS)

    def _resign(self) -> None:
        try:
            with self._database.write() as session:
                session.execute(dispatch.resign(LEADERSHIP, self._owner))
        except SQLAlchemyError as error:
            log.warning("cannot resign", extra={"error": type(error).__name__})
