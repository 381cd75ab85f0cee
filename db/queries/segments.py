"""Segments: finished parts of documents, kept until their job has its result."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Delete, Select, delete, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from db.models import Job, Segment
from db.queries.conditions import RUNNING
from db.queries.inserts import table


def running_among(owner: str, attempts: Sequence[tuple[UUID, int]]) -> Select[UUID, int]:
    """Those of the attempts that are still the ones to write, until the end of the transaction.

    Locked, or somebody could cancel a job and erase its text between this and what is
    written because of it.
    """
    return (
        select(Job.id, Job.attempt)
        .where(
            Job.id.in_([job_id for job_id, _ in attempts]),  # the index; the fence follows
            tuple_(Job.id, Job.attempt).in_(attempts),
            Job.owner == owner,
            Job.state == RUNNING,
        )
        .order_by(Job.id)
        .with_for_update()
    )


def insert_segments(session: Session) -> postgresql.Insert | sqlite.Insert:
    """Keep finished parts; one that was computed again, for another request, replaces the old."""
    dialect = session.get_bind().dialect.name
    build = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = build(table(Segment))
    return statement.on_conflict_do_update(
        index_elements=["job_id", "position"], set_={"output": statement.excluded.output}
    )


def segments_of(job_ids: Sequence[UUID]) -> Select[UUID, int, dict[str, Any]]:
    return select(Segment.job_id, Segment.position, Segment.output).where(
        Segment.job_id.in_(job_ids)
    )


def delete_segments(job_ids: Sequence[UUID]) -> Delete:
    """Forget the parts of jobs that have their result."""
    return delete(Segment).where(Segment.job_id.in_(job_ids))
