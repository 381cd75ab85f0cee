"""Conditions that several statements share."""

from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, exists, func, literal_column, or_, select

from db.clock import now
from db.models import Job

# The values are literals: the planner uses a partial index only if it can prove that the condition
# implies the index's own, which it cannot for a parameter.
QUEUED: ColumnElement[str] = literal_column("'queued'")
RUNNING: ColumnElement[str] = literal_column("'running'")


def due() -> ColumnElement[bool]:
    """Whether a job may be claimed: it is queued and due, or its lease has expired."""
    return and_(
        or_(
            and_(
                Job.state == QUEUED,
                or_(Job.not_before.is_(None), Job.not_before <= now()),
            ),
            and_(Job.state == RUNNING, Job.lease_until < now()),
        ),
        or_(Job.deadline.is_(None), Job.deadline > now()),
    )


def outstanding() -> ColumnElement[bool]:
    """Whether the broker or a worker holds an unfinished job (index `ix_jobs_outstanding`)."""
    return and_(Job.finished_at.is_(None), or_(Job.published_at.is_not(None), Job.state == RUNNING))


def locked(jobs: Select[UUID]) -> Select[UUID]:
    """Lock these rows in order; SQLite has a single writer and needs no lock."""
    return jobs.order_by(Job.id).with_for_update()


def has_pair(dialect: str, metadata: Any, key: str, value: str) -> ColumnElement[bool]:
    """Whether a metadata column contains a pair."""
    if dialect == "postgresql":
        matches: ColumnElement[bool] = metadata[key].as_string() == value
        return matches
    # SQLite compares the labels of a JSON path as they are written, escapes and all.
    pair = func.json_each(metadata).table_valued("key", "value")
    return exists(select(1).select_from(pair).where(pair.c.key == key, pair.c.value == value))
