"""Pages by key, in both directions: an index has both."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, literal, tuple_

from db.models import Job


def in_order(newest_first: bool) -> tuple[ColumnElement[datetime], ColumnElement[UUID]]:
    """When jobs were submitted, and for those of one moment the order of their ids."""
    if newest_first:
        return Job.created_at.desc(), Job.id.desc()
    return Job.created_at.asc(), Job.id.asc()


def after(created_at: datetime, job_id: UUID, newest_first: bool) -> ColumnElement[bool]:
    """Rows that follow this one in that order."""
    row = tuple_(literal(created_at, Job.created_at.type), literal(job_id, Job.id.type))
    key = tuple_(Job.created_at, Job.id)
    return key < row if newest_first else key > row
