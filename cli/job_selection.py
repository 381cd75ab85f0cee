"""JobSelection: the jobs that a user names, by their ids or by their batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import typer
from sqlalchemy import ColumnElement
from sqlalchemy.sql.dml import ReturningUpdate

from cli import options
from cli.lookup import found_batch
from cli.output.progress import states_in_words
from cli.output.terminal import plural, say, warn, write_json
from cli.stack.ready import require_ready
from db.audit import Act, append
from db.models import Job
from db.reading.batches import find_batches
from db.reading.found_job import FoundJob
from db.reading.results import find_job
from db.session import Database

MAX_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class JobSelection:
    database: Database
    condition: ColumnElement[bool]
    job_ids: tuple[UUID, ...]  # empty where a batch was named
    batch_id: UUID | None = None

    def change(
        self,
        act: Act,
        change: Callable[[int], ReturningUpdate[UUID]],
        on_changed: Callable[[], None] = lambda: None,
    ) -> list[UUID]:
        """Change the jobs in small transactions; returns the ids of those that changed.

        A night's jobs in one transaction would block the workers.

        on_changed: called after each commit that changed any
        """
        changed: list[UUID] = []
        while True:
            with self.database.write() as session:
                some = session.scalars(change(MAX_AT_ONCE)).all()
                if some:
                    append(session, act, self._audited(some))
            if some:
                on_changed()
            changed += some
            if len(some) < MAX_AT_ONCE:
                return changed

    def _audited(self, changed: Sequence[UUID]) -> dict[str, Any]:
        if self.batch_id is not None:
            return {"batch": str(self.batch_id), "num_jobs": len(changed)}
        return {"jobs": [str(job_id) for job_id in changed]}

    def report(self, done: str, changed: Sequence[UUID], otherwise: str, json: bool) -> None:
        """Print which jobs were changed and which were not; status 1 if one does not exist."""
        missing, untouched = [], []
        for job_id in self.job_ids:
            if job_id not in changed:
                found_job = find_job(job_id, database=self.database)
                if found_job is None:
                    missing.append(job_id)
                else:
                    untouched.append(found_job)
        if json:
            write_json(
                {
                    "changed": [str(job_id) for job_id in changed],
                    "unchanged": {str(job.id): job.state.value for job in untouched},
                    "unknown": [str(job_id) for job_id in missing],
                }
            )
        else:
            say(f"{plural(len(changed), 'job')} {done}{self._why_none() if not changed else ''}")
            for job in untouched:
                say(_why_untouched(job, otherwise))
            for job_id in missing:
                warn(f"there is no job {job_id}")
        if missing:
            raise typer.Exit(1)

    def _why_none(self) -> str:
        """The states of the jobs of a batch of which none was changed."""
        if self.batch_id is None:
            return ""
        [batch] = find_batches(self.batch_id, database=self.database)
        return f"; in the batch: {states_in_words(batch)}"


def selected_jobs(names: Sequence[str], batch: str | None) -> JobSelection:
    """The jobs of a batch, or the named ones; a usage error for neither or both."""
    if bool(names) == (batch is not None):
        raise typer.BadParameter("give job ids, or a --batch", param_hint="JOB")
    job_ids = options.job_ids(names)
    database = require_ready()
    if batch is not None:
        batch_id = found_batch(batch).id
        return JobSelection(database, Job.batch_id == batch_id, (), batch_id)
    return JobSelection(database, Job.id.in_(job_ids), tuple(job_ids))


def _why_untouched(job: FoundJob, otherwise: str) -> str:
    if not job.model:
        return f"{job.id} was refused when it was submitted; submit it again, mended"
    if job.input_pruned_at is not None:
        went = "erased" if job.erased_at else "pruned"
        return f"{job.id} is {job.state}: its text was {went}, so there is nothing to run"
    return f"{job.id} is {job.state}: {otherwise}"
