"""Delivery: one arrival of a message, with its jobs and a callback for its end."""

import logging
import threading
from collections.abc import Callable, Iterable
from uuid import UUID

log = logging.getLogger(__name__)


class Delivery:
    """Calls `on_settled` once, when the last of its jobs is settled.

    A job is settled when its outcome is committed, or when it needs no work. Any thread may settle.
    """

    def __init__(self, job_ids: Iterable[UUID], on_settled: Callable[[], None]) -> None:
        self.job_ids = tuple(dict.fromkeys(job_ids))
        self._unsettled = set(self.job_ids)
        self._on_settled = on_settled
        self._lock = threading.Lock()

    def settle(self, job_ids: Iterable[UUID]) -> None:
        with self._lock:
            if not self._unsettled:
                return
            self._unsettled.difference_update(job_ids)
            if self._unsettled:
                return
        try:
            self._on_settled()
        except Exception as error:
            # An unacked message is delivered again and settled at once. The settling thread may be
            # the committer's, which must go on with other deliveries.
            log.warning("cannot settle", extra={"error": type(error).__name__})

    @property
    def unsettled(self) -> frozenset[UUID]:
        with self._lock:
            return frozenset(self._unsettled)
