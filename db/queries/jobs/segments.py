"""Segments: finished parts of documents, stored until their job has its result."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Delete, Integer, Select, Uuid, column, delete, select, tuple_, values
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from db.models import Job, Segment
from db.queries.conditions import RUNNING
from db.queries.inserts import table


def running_among(owner: str, attempts: Sequence[tuple[UUID, int]]) -> Select[UUID, int]:
    """The attempts that may still write, locked until the end of the transaction.

    Without the lock, a job could be cancelled and its text erased before the write that depends on
    this.
    """
    return (
        select(Job.id, Job.attempt)
        .where(
            Job.id.in_([job_id for job_id, _ in attempts]),  # for the index; the fence follows
            tuple_(Job.id, Job.attempt).in_(attempts),
            Job.owner == owner,
            Job.state == RUNNING,
        )
        .order_by(Job.id)
        .with_for_update()
    )


def insert_segments(session: Session) -> postgresql.Insert | sqlite.Insert:
    """Insert finished parts; one of another request replaces the old one in its place."""
    dialect = session.get_bind().dialect.name
    build = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = build(table(Segment))
    return statement.on_conflict_do_update(
        index_elements=["job_id", "position"], set_={"output": statement.excluded.output}
    )


def segments_between(
    pages: Sequence[tuple[UUID, int, int]],
) -> Select[UUID, int, dict[str, Any]]:
    """The (job, position, output) of pages.

    pages: (job, first position, position after the last)
    """
    page = (
        values(column("job_id", Uuid), column("first", Integer), column("behind", Integer))
        .data(list(pages))
        .cte("page")
    )
    return select(Segment.job_id, Segment.position, Segment.output).join(
        page,
        (Segment.job_id == page.c.job_id)
        & (Segment.position >= page.c.first)
        & (Segment.position < page.c.behind),
    )


def delete_segments(job_ids: Sequence[UUID]) -> Delete:
    """Delete the segments of jobs that have their result."""
    return delete(Segment).where(Segment.job_id.in_(job_ids))
