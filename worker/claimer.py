"""Claimer: turns deliveries into claimed jobs, many in one UPDATE."""

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from db.encryption.key_ring import Unopenable
from db.lane import Lane
from db.outcome import Fence
from db.queries.jobs import claims
from db.session import Database
from tasks.outage import Outage
from tasks.quarantine import Reason, SetAside, keep
from tasks.queues import RUN_JOBS
from tasks.tracing import own_traceparent, read_traceparent
from worker.attempts.dialogue import with_dialogues
from worker.backoff import backoff_seconds
from worker.bisection import run_in_halves
from worker.delivery import Delivery
from worker.failpoints import passing
from worker.settings import Settings

log = logging.getLogger(__name__)

# Between two tries while the database is away.
FIRST_PAUSE_SECONDS = 0.1
MAX_PAUSE_SECONDS = 5.0
MAX_IDS = 512  # of one UPDATE
FULL_SECONDS = 0.1  # between two looks at whether it must still wait


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    fence: Fence
    task: str
    model: str
    lane: Lane
    num_failures: int
    time_limit_seconds: float | None
    tenant: str
    batch_id: UUID | None
    traceparent: str | None
    wait_seconds: float  # since it was submitted
    claim_began_ns: int  # since the epoch
    contract: dict[str, Any] | None  # None: it was changed in the database and does not open
    delivery: Delivery

    def ids(self) -> dict[str, str]:
        """The fields by which log lines name the job."""
        ids = {"job_id": str(self.fence.job_id)}
        if self.batch_id is not None:
            ids["batch_id"] = str(self.batch_id)
        if self.traceparent is not None:
            own = own_traceparent(self.fence.job_id, self.batch_id, self.traceparent)
            ids["trace_id"] = own.split("-")[1]
        return ids


class Claimer:
    """A thread that claims the jobs of deliveries and hands them to `start`.

    Ids that the claim does not return are finished, cancelled or another worker's: they are settled
    at once. While the database is away, or too many outcomes are unwritten, deliveries wait here
    unacked.
    """

    def __init__(
        self,
        database: Database,
        owner: str,
        settings: Settings,
        start: Callable[[list[ClaimedJob]], None],
        must_wait: Callable[[], bool] = lambda: False,
    ) -> None:
        """must_wait: returns whether no job may be claimed now"""
        self._database = database
        self._owner = owner
        self._settings = settings
        self._start = start
        self._must_wait = must_wait
        self._inbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="claimer", daemon=True)
        self._stopping = threading.Event()
        self._away = Outage(log, "cannot claim", "claiming again")

    def start(self) -> None:
        self._thread.start()

    def put(self, delivery: Delivery) -> None:
        self._inbox.put(delivery)

    def stop(self) -> None:
        """Stop claiming; waiting deliveries stay unsettled."""
        self._stopping.set()
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            deliveries = self._gather()
            while self._must_wait() and not self._stopping.wait(FULL_SECONDS):
                pass
            if deliveries:
                self._claim_until_done(deliveries)

    def _gather(self) -> list[Delivery]:
        """The next delivery, and those that arrive shortly after it."""
        first = self._inbox.get()
        if first is None:
            return []
        gathered, num_ids = [first], len(first.job_ids)
        until = time.monotonic() + self._settings.claim_seconds
        while num_ids < MAX_IDS and (seconds_left := until - time.monotonic()) > 0:
            try:
                delivery = self._inbox.get(timeout=seconds_left)
            except queue.Empty:
                break
            if delivery is None:
                return []
            gathered.append(delivery)
            num_ids += len(delivery.job_ids)
        return gathered

    def _claim_until_done(self, deliveries: list[Delivery]) -> None:
        num_failures = 0
        while not self._stopping.is_set():
            try:
                claimed = self._claim(deliveries)
            except Exception as error:  # any error: this thread must not die
                self._away.began(error)
                num_failures += 1
                self._stopping.wait(
                    backoff_seconds(num_failures, FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS)
                )
                continue
            self._away.ended()
            passing("claimed")
            self._start(claimed)
            claimed_ids = {job.fence.job_id for job in claimed}
            for delivery in deliveries:
                delivery.settle(id for id in delivery.job_ids if id not in claimed_ids)
            return

    def _claim(self, deliveries: list[Delivery]) -> list[ClaimedJob]:
        began_ns = time.time_ns()
        # A job in two deliveries belongs to the first; for the other it is settled.
        named: dict[UUID, Delivery] = {}
        for delivery in deliveries:
            for job_id in delivery.job_ids:
                if named.setdefault(job_id, delivery) is not delivery:
                    delivery.settle([job_id])
        with self._database.write() as session:
            rows = claims.claim(
                session, sorted(named), self._owner, self._settings.lease_seconds
            ).all()
            ids = [row.id for row in rows]
            contracts = with_dialogues(session, self._contracts(session, ids))
            if not_taken := named.keys() - set(ids):
                known = session.scalars(claims.jobs_among(sorted(not_taken)))
                if unknown := not_taken - set(known):
                    keep(session, [_unknown_jobs(unknown)])
        return [
            ClaimedJob(
                Fence(row.id, row.attempt, self._owner),
                row.task,
                row.model,
                Lane(row.lane),
                row.failures,
                row.time_limit_seconds,
                row.tenant,
                row.batch_id,
                # Of a row that something else wrote, it may be none.
                read_traceparent(row.traceparent) if row.traceparent else None,
                row.wait_microseconds / 1e6,
                began_ns,
                contracts.get(row.id),
                named[row.id],
            )
            for row in rows
        ]

    @staticmethod
    def _contracts(session: Session, job_ids: Sequence[UUID]) -> dict[UUID, dict[str, Any]]:
        """The contracts of the jobs, without any that was tampered with and cannot be read."""
        contracts: dict[UUID, dict[str, Any]] = {}
        run_in_halves(
            job_ids,
            lambda ids: contracts.update(session.execute(claims.payloads_of(ids)).all()),
            lambda error: isinstance(error, Unopenable),
            lambda job_id, error: None,
        )
        return contracts


def _unknown_jobs(job_ids: Collection[UUID]) -> SetAside:
    """Describe unknown job ids: workers of another database may share this Redis."""
    body = json.dumps(sorted(map(str, job_ids))).encode()
    return SetAside(
        queue="", reason=Reason.UNKNOWN_JOBS, body=body, num_bytes=len(body), task=RUN_JOBS
    )
