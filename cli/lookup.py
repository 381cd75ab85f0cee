"""Found: the batch or job that a person names, or a sentence."""

from uuid import UUID

from cli.errors import NotFound
from cli.output.terminal import note
from db.reading.batches import FoundBatch, find_batches
from db.reading.job_details import JobDetails, find_details
from tasks.configuration import settings


def found_batch(name: str) -> FoundBatch:
    """The newest batch by a name, a run key or an id; raises NotFound."""
    found = find_batches(name, limit=2, database=settings.database())
    if not found:
        raise NotFound(f"there is no batch {name!r}; `tidemill batches` lists them")
    if len(found) > 1:
        note(f"several batches are called {name}; this is the newest, {found[0].id}")
    return found[0]


def found_job(job_id: UUID) -> JobDetails:
    """Everything about a job; raises NotFound."""
    found = find_details(job_id, database=settings.database())
    if found is None:
        raise NotFound(f"there is no job {job_id}; `tidemill results --state all` lists them")
    return found
