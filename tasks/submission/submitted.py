"""SubmittedJob and SubmittedBatch: the return values of submitting."""

import time
from dataclasses import dataclass
from uuid import UUID

from db.reading.found_job import FoundJob
from db.reading.results import find_job
from db.states import FINISHED
from tasks.configuration import settings


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job that was submitted."""

    id: UUID
    is_new: bool  # False: the idempotency key was submitted before

    def find(self) -> FoundJob:
        """The job as it stands now."""
        job = find_job(self.id, database=settings.database())
        assert job is not None, f"job {self.id} is gone"
        return job

    def wait(self, timeout_seconds: float | None = None) -> FoundJob:
        """The finished job; raises TimeoutError if it takes too long."""
        started = time.monotonic()
        pause_seconds = 0.05
        while (job := self.find()).state not in FINISHED:
            if timeout_seconds is not None and time.monotonic() - started > timeout_seconds:
                raise TimeoutError(f"job {self.id} is still {job.state}")
            time.sleep(pause_seconds)
            pause_seconds = min(1.0, pause_seconds * 1.5)
        return job


@dataclass(frozen=True, slots=True)
class SubmittedBatch:
    """A batch that was submitted."""

    id: UUID
    name: str
    num_new: int
    num_known: int  # jobs that were submitted before, under the same run key
