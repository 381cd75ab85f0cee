"""Sabotage: a worker that imports this writes its outcomes without checking the fence.

For the canaries: `celery worker --include tests.chaos.no_fence`.
"""

from collections.abc import Sequence

from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from db.clock import now
from db.models import Job, Result
from db.outcome import Outcome
from db.queries.jobs import completion
from db.states import JobState
from worker.committer import Committer, result_row


def _write_answers(
    self: Committer, session: Session, outcomes: Sequence[Outcome]
) -> Sequence[Outcome]:
    for each in outcomes:
        job_id = each.fence.job_id
        ended = {"state": JobState.SUCCEEDED, "owner": None, "lease_until": None}
        session.execute(update(Job).where(Job.id == job_id).values(**ended, finished_at=now()))
        session.execute(delete(Result).where(Result.job_id == job_id))
        session.execute(completion.insert_results(), [result_row(each)])
    return outcomes


Committer._write_answers = _write_answers  # type: ignore[method-assign]
