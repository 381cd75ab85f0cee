"""A whole worker in the test's own process, without Celery: the test delivers messages."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import select

from db.models import Job
from db.reading.job_details import JobDetails, find_details
from db.session import Database
from db.states import JobState
from tasks.configuration.catalog import Model
from tasks.contracts.contract import Contract
from tasks.submission.batch import submit_batch
from tests.running.producers import FAKE
from tests.running.workers import PATIENCE_SECONDS, Cluster
from worker.cache.settings import CacheSettings
from worker.settings import Settings
from worker.worker import Worker


@dataclass
class Serving:
    """One worker in this process, and the requests to its engine."""

    worker: Worker
    database: Database

    @property
    def num_computed(self) -> int:
        """The number of requests that a model has answered, on all engines."""
        engines = self.worker.info()["engines"]
        return sum(each["num_in_flight"] + each["num_by_generate"] for each in engines)

    def run(self, contracts: Sequence[Contract], seconds: float = PATIENCE_SECONDS) -> list[UUID]:
        """Submit these as one batch and deliver them in one message; returns their ids once all
        have ended."""
        batch = submit_batch(contracts, name="night")
        with self.database.read() as session:
            in_order = select(Job.id).where(Job.batch_id == batch.id).order_by(Job.id)
            job_ids = list(session.scalars(in_order))
        settled = threading.Event()
        self.worker.deliver(job_ids, settled.set)
        assert settled.wait(seconds)
        return job_ids

    def details(self, job_id: UUID) -> JobDetails:
        found = find_details(job_id, database=self.database)
        assert found is not None
        return found

    def outputs(self, job_ids: Iterable[UUID]) -> list[str | None]:
        found = [self.details(job_id).job for job_id in job_ids]
        assert {each.state for each in found} == {JobState.SUCCEEDED}, found
        return [each.output for each in found]


@contextmanager
def serving(
    producer: Cluster,
    cache: CacheSettings | None = None,
    settings: Settings | None = None,
    guards: Mapping[str, Any] | None = None,
    **model: Any,
) -> Iterator[Serving]:
    made = Model(alias="fake", **{**FAKE, "max_sequences": 8, **model})
    settings = settings or Settings()
    worker = Worker(producer.database, [made], settings, lambda: None, cache, guards=guards)
    worker.start()
    try:
        yield Serving(worker, producer.database)
    finally:
        worker.stop()
