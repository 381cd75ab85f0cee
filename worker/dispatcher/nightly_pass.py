"""NightlyPass: once a night one worker prunes and submits the canaries for all.

A row of `leaderships` says until when the pass is done. If a worker dies in the middle of a pass,
its row expires within `PASS_SECONDS`, and the leader at that time continues. A night without a
worker is made up for when one starts.
"""

import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from threading import Event

from db import audit
from db.queries.jobs import dispatch
from db.session import Database
from db.upkeep.pruning import prune
from db.upkeep.retention import Retention, seconds_until
from tasks.canaries import Canary, submit_canaries
from tasks.errors import Refused
from worker.periodic_thread import PeriodicThread

log = logging.getLogger(__name__)

NIGHTLY = "nightly pass"
POLL_SECONDS = 60.0  # between two checks whether it is time
UNLED_SECONDS = 1.0  # the same while another worker leads, which is free to check
PASS_SECONDS = 900.0  # after a worker's death another one continues; renewed while the pass runs


class NightlyPass:
    """A thread of its own, since a pass takes minutes, which would delay the dispatcher."""

    def __init__(
        self,
        database: Database,
        owner: str,
        retention: Retention,
        leads: Callable[[], bool],
        now: Callable[[], datetime] = datetime.now,
        canaries: Sequence[Canary] = (),
    ) -> None:
        """leads:    returns whether this worker is the leader
        now:      returns the local time
        canaries: submitted in each pass
        """
        self._database = database
        self._owner = owner
        self._retention = retention
        self._leads = leads
        self._now = now
        self._canaries = canaries
        self._stopping = Event()
        self._renewed_at = 0.0
        self._thread = PeriodicThread("nightly-pass", POLL_SECONDS, self.tick)

    def start(self) -> None:
        self._thread.start()
        self._thread.wake()

    def stop(self) -> None:
        """Return when the running transaction has ended; another worker continues the pass."""
        self._stopping.set()
        self._thread.stop()

    def tick(self) -> float:
        """Make a pass if this worker leads and it is due; returns seconds to wait."""
        if not self._leads():
            return UNLED_SECONDS
        with self._database.read() as session:
            is_due = session.scalar(dispatch.is_due(NIGHTLY))
        if is_due is None:  # a new database: its first night is the next
            with self._database.write() as session:
                dispatch.lead(session, NIGHTLY, self._owner, self._seconds_until_next())
        elif is_due:
            with self._database.write() as session:
                is_ours = session.scalar(dispatch.take_over(NIGHTLY, self._owner, PASS_SECONDS))
            if is_ours is not None:
                self._run()
        return POLL_SECONDS

    def _run(self) -> None:
        self._renewed_at = time.monotonic()
        # Before pruning, whose duration depends on the number of expired rows.
        if self._canaries and not self._stopping.is_set():
            self._submit_canaries()
        with audit.acting_as(f"worker {self._owner}"):
            pruned = prune(
                self._database,
                self._retention,
                on_pruned=self._renew,
                is_ended=self._stopping.is_set,
                pause=self._stopping.wait,
            )
        is_over = not self._stopping.is_set()
        self._hold(self._seconds_until_next() if is_over else 0)
        log.info("nightly pass", extra={"pruned": pruned, "is_over": is_over})
        # The log is beyond the reach of the database's users: a truncated or rewritten chain no
        # longer has this hash.
        head = audit.head(self._database)
        log.info("audit head", extra={"sequence": head.sequence, "hash": head.hash})

    def _submit_canaries(self) -> None:
        try:
            submit_canaries(self._canaries, f"canaries-{self._now():%Y-%m-%d}")
        except Refused as error:
            # The rest of the pass does not depend on it; `tidemill canaries` shows that none ran
            # today.
            log.error("canaries refused", extra={"error": type(error).__name__})

    def _renew(self, name: str, num: int) -> None:
        if time.monotonic() > self._renewed_at + PASS_SECONDS / 3:
            self._hold(PASS_SECONDS)
            self._renewed_at = time.monotonic()

    def _hold(self, seconds: float) -> None:
        with self._database.write() as session:
            dispatch.lead(session, NIGHTLY, self._owner, seconds)

    def _seconds_until_next(self) -> float:
        return seconds_until(self._retention.at, self._now())
