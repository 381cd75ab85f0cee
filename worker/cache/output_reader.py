"""OutputReader: reads stored outputs, those of earlier attempts and of the content cache.

A page of requests is looked up at once, and waiting pages are read in one statement, so the jobs of
a message cost one statement together.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from db.encryption.key_ring import Unopenable
from db.queries import cache as cache_queries
from db.queries.jobs import segments as segment_queries
from db.session import Database
from tasks.outage import Outage
from worker.backoff import backoff_seconds

log = logging.getLogger(__name__)

# Between two tries while the database is away.
FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 5.0
MAX_KEYS = 1024  # of one statement
MAX_PAGES = 512  # read together


@dataclass(frozen=True, slots=True)
class StoredOutputs:
    """The stored outputs for one page."""

    segments: Mapping[int, dict[str, Any]] = field(default_factory=dict)  # by position
    outputs: Mapping[bytes, bytes] = field(default_factory=dict)  # by key of the content cache


@dataclass(frozen=True, slots=True)
class RequestPage:
    """Requests of a job, in order, and the callback for their stored outputs."""

    job_id: UUID
    positions: range  # whose segments are read; empty where there can be none
    keys: Sequence[bytes]
    on_read: Callable[[StoredOutputs], None]


class OutputReader:
    """A thread with its own session, so that advancing a job never waits for the database."""

    def __init__(self, database: Database, ttl_seconds: float) -> None:
        """ttl_seconds: older entries of the content cache are ignored"""
        self._database = database
        self._ttl_seconds = ttl_seconds
        self._pages: deque[RequestPage] = deque()
        self._changed = threading.Condition()
        self._num_holds = 0
        self._stopping = False
        self._away = Outage(log, "cannot read what is kept", "what is kept is read again")
        self._thread = threading.Thread(target=self._run, name="kept-outputs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; waiting pages are dropped."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def look_up(self, page: RequestPage) -> None:
        """Read a page, and call its `on_read` on the reader's thread."""
        with self._changed:
            self._pages.append(page)
            if not self._num_holds:
                self._changed.notify_all()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Read all pages that are looked up within this context in one statement, at its end."""
        with self._changed:
            self._num_holds += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_holds -= 1
                if self._pages:
                    self._changed.notify_all()

    def _run(self) -> None:
        while pages := self._next_pages():
            for page, stored in zip(pages, self._read_until_done(pages), strict=False):
                page.on_read(stored)

    def _next_pages(self) -> list[RequestPage]:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or (self._pages and not self._num_holds))
            if self._stopping:
                return []
            return [self._pages.popleft() for _ in range(min(len(self._pages), MAX_PAGES))]

    def _read_until_done(self, pages: Sequence[RequestPage]) -> list[StoredOutputs]:
        """The stored outputs of each page, retried until read; empty when the thread must end."""
        num_failures = 0
        while True:
            try:
                stored = self._read(pages)
            except Unopenable:
                # Tampered with in the database. Segments only save work, so go on without it.
                log.error("what is kept does not open", extra={"num_pages": len(pages)})
                return [StoredOutputs()] * len(pages)
            except Exception as error:  # any error: this thread must not die
                self._away.began(error)
                if not any(page.positions for page in pages):
                    # Stored outputs only save work, so go on without them.
                    return [StoredOutputs()] * len(pages)
                num_failures += 1
                pause = backoff_seconds(num_failures, FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS)
                with self._changed:
                    if self._changed.wait_for(lambda: self._stopping, pause):
                        return []
            else:
                self._away.ended()
                return stored

    def _read(self, pages: Sequence[RequestPage]) -> list[StoredOutputs]:
        ranges = [
            (page.job_id, page.positions.start, page.positions.stop)
            for page in pages
            if page.positions
        ]
        keys = sorted({key for page in pages for key in page.keys})
        segments: dict[UUID, dict[int, dict[str, Any]]] = {}
        outputs: dict[bytes, bytes] = {}
        with self._database.read() as session:
            if ranges:
                for row in session.execute(segment_queries.segments_between(ranges)):
                    segments.setdefault(row.job_id, {})[row.position] = row.output
            for start in range(0, len(keys), MAX_KEYS):
                some = keys[start : start + MAX_KEYS]
                outputs |= dict(
                    session.execute(cache_queries.outputs_of(some, self._ttl_seconds)).all()
                )
        return [
            StoredOutputs(
                segments.get(page.job_id, {}) if page.positions else {},
                {key: outputs[key] for key in page.keys if key in outputs},
            )
            for page in pages
        ]
