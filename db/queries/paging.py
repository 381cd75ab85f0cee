"""Pages by key."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, literal, tuple_

from db.models import Job


def after(created_at: datetime, job_id: UUID) -> ColumnElement[bool]:
    """Rows that follow this one, oldest first."""
    row = literal(created_at, Job.created_at.type), literal(job_id, Job.id.type)
    return tuple_(Job.created_at, Job.id) > tuple_(*row)
