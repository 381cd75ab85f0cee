"""A run: a cluster, the jobs that were submitted, the faults, and the verdict."""

import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from db.models import Job
from db.queries.jobs import cancel_retry
from db.states import JobState
from tasks import generate, submit_batch, summarize
from tasks.generate import GenerateContract
from tests.chaos import checker
from tests.chaos.checker import Bounds
from tests.chaos.history import History
from tests.running.workers import PATIENCE_SECONDS, Cluster, WorkerProcess

# What takes a minute in production takes some seconds here.
SHORT: dict[str, Any] = {
    "lease_seconds": 2.0,
    "renew_seconds": 0.5,
    "watch_seconds": 0.2,
    "dispatch_seconds": 0.2,
    "lead_seconds": 1.0,
    "lost_seconds": 2.0,
    "retry_seconds": 0.2,
}
BOUNDS = Bounds(lease_seconds=2.0, lead_seconds=1.0, dispatch_seconds=0.2, allowance_seconds=10.0)

# So many words that the header is a part of its own, which documents share.
HEADER = " ".join(f"header{number}" for number in range(20))
Returned = TypeVar("Returned")


@dataclass
class Run:
    cluster: Cluster
    history: History
    num_submitted: int = 0

    # --- what is asked ---------------------------------------------------------------------------

    def submit(self, num_jobs: int, num_tokens: int = 8) -> list[UUID]:
        """Submit a batch, in spite of outages; the text of each job has a word of its own."""
        first = self.num_submitted
        self.num_submitted += num_jobs
        texts = [f"word job{first + number}" for number in range(num_jobs)]
        batch = self.persistently(
            lambda: submit_batch(
                (
                    GenerateContract.parse({"text": text, "max_new_tokens": num_tokens})
                    for text in texts
                ),
                name="night",
                run_key=f"night from {first}",
            )
        )
        job_ids = self.persistently(lambda: self._jobs_of(batch.id))
        assert len(job_ids) == num_jobs
        self.history.write("submitted", batch_id=batch.id, job_ids=job_ids)
        return job_ids

    def submit_one(self, **fields: Any) -> UUID:
        """An interactive job."""
        self.num_submitted += 1
        number = self.num_submitted
        contract = {
            "text": f"word job{number}",
            "max_new_tokens": 8,
            "idempotency_key": f"one {number}",
            **fields,
        }
        job_id = self.persistently(lambda: generate.submit(**contract)).id
        self.history.write("submitted", batch_id=None, job_ids=[job_id])
        return job_id

    def submit_document(self, num_sentences: int = 40) -> UUID:
        """Submit a document that is read in parts, each with the job's own word.

        The parts are separated by a header that all documents share.
        """
        self.num_submitted += 1
        number = self.num_submitted
        sentences = (
            f"word job{number} stands in sentence {line} of it." for line in range(num_sentences)
        )
        contract = {
            "text": "\n\n".join(f"{HEADER}\n\n{each}" for each in sentences),
            "strategy": "map_reduce",
            "max_new_tokens": 8,
            "idempotency_key": f"document {number}",
        }
        job_id = self.persistently(lambda: summarize.submit(**contract)).id
        self.history.write("submitted", batch_id=None, job_ids=[job_id])
        return job_id

    def poison(self, job_id: UUID, code: str) -> UUID:
        """Expect that this job fails with this code."""
        self.history.write("poison", job_id=job_id, code=code)
        return job_id

    def cancel(self, job_ids: Iterable[UUID]) -> None:
        job_ids = list(job_ids)
        # Recorded first: the database may commit and then fail to answer.
        self.history.write("cancelled", job_ids=job_ids)

        def act() -> None:
            with self.cluster.database.write() as session:
                session.execute(cancel_retry.cancel_jobs(Job.id.in_(job_ids)))

        self.persistently(act)

    def persistently(self, act: Callable[[], Returned]) -> Returned:
        """Call `act`, again if the database is away."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return act()
            except DBAPIError:
                assert time.monotonic() < until
                time.sleep(0.1)

    def _jobs_of(self, batch_id: UUID) -> list[UUID]:
        with self.cluster.database.read() as session:
            return list(session.scalars(select(Job.id).where(Job.batch_id == batch_id)))

    # --- what is done to it ---------------------------------------------------------------------

    def kill(self, worker: WorkerProcess) -> None:
        worker.process.send_signal(signal.SIGKILL)
        self.bury(worker)

    def bury(self, worker: WorkerProcess) -> int:
        """Wait for a worker's end; returns its exit status."""
        status = worker.wait()
        self.history.write("death", pid=worker.pid, status=status)
        return status

    # --- the verdict -----------------------------------------------------------------------------

    def wait_until_finished(self) -> None:
        self.cluster.wait_until_finished(self.num_submitted)

    def num_unfinished(self) -> int:
        states = self.persistently(self.cluster.states)
        return states.get(JobState.QUEUED, 0) + states.get(JobState.RUNNING, 0)

    def complaints(self, bounds: Bounds | None = BOUNDS) -> list[str]:
        return checker.complaints(self.history, self.cluster.database, bounds)
