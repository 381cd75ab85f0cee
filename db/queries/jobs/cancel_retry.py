"""Cancellation and retry: a person ends jobs, or requeues them."""

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from db.clock import now
from db.models import Job
from db.queries.conditions import locked
from db.states import RETRIABLE, UNFINISHED, JobState


def cancel_jobs(condition: ColumnElement[bool], limit: int | None = None) -> ReturningUpdate[UUID]:
    """Cancel the selected unfinished jobs; the attempt of a running one may no longer write."""
    unfinished = _is_selected(condition & Job.state.in_(UNFINISHED), limit)
    return (
        update(Job)
        .where(unfinished, Job.state.in_(UNFINISHED))
        .values(state=JobState.CANCELLED, owner=None, lease_until=None, finished_at=now())
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )


def retry_jobs(
    condition: ColumnElement[bool], states: Iterable[JobState], limit: int | None = None
) -> ReturningUpdate[UUID]:
    """Requeue the selected jobs with no failures counted, if they ended in one of `states`.

    The attempt number continues: it is the fence and never used twice. A job whose text was pruned
    cannot be retried.
    """
    ended = Job.state.in_(list(states)) & Job.pruned_at.is_(None)
    assert set(states) <= RETRIABLE
    return (
        update(Job)
        .where(_is_selected(condition & ended, limit), ended)
        .values(
            state=JobState.QUEUED,
            failures=0,
            error_code=None,
            error_message=None,
            published_at=None,
            not_before=None,
            finished_at=None,
        )
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )


def _is_selected(condition: ColumnElement[bool], limit: int | None) -> ColumnElement[bool]:
    """Select at most `limit` rows, locked in order of id, since workers write some of them."""
    selected = locked(select(Job.id).where(condition)).limit(limit).cte("asked")
    return Job.id.in_(select(selected.c.id))
