"""Finds the batch or job that a user names."""

from uuid import UUID

from cli.errors import NotFound
from cli.output.terminal import note
from db.reading.batches import FoundBatch, find_batches
from db.reading.job_details import JobDetails, find_details
from tasks.configuration import settings


def found_batch(name: str) -> FoundBatch:
    """The newest batch with this name, run key or id; raises NotFound."""
    batches = find_batches(name, limit=2, database=settings.database())
    if not batches:
        raise NotFound(f"there is no batch {name!r}; `tidemill batches` lists them")
    if len(batches) > 1:
        note(f"several batches are called {name}; this is the newest, {batches[0].id}")
    return batches[0]


def found_job(job_id: UUID) -> JobDetails:
    """The details of a job; raises NotFound."""
    details = find_details(job_id, database=settings.database())
    if details is None:
        raise NotFound(f"there is no job {job_id}; `tidemill results --state all` lists them")
    return details
