"""The database: jobs, the texts they were given, and their results.

The public part is for reading:

    from db import find_results
    for job in find_results(task="summarize", batch="nightly-2026-11-23"):
        print(job.custom_id, job.output)
"""

from db.errors import DatabaseError
from db.lane import Lane
from db.reading.found_job import Cursor, FoundJob, JobFailure
from db.reading.results import find_job, find_results
from db.session import Database, database_from_environment
from db.states import JobState

__all__ = [
    "Cursor",
    "Database",
    "DatabaseError",
    "FoundJob",
    "JobFailure",
    "JobState",
    "Lane",
    "database_from_environment",
    "find_job",
    "find_results",
]
