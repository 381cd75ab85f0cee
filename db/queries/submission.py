"""What a producer adds: jobs and their payloads."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from sqlalchemy import Insert, Select, insert, select, text
from sqlalchemy.orm import Session

from db.clock import seconds_from_now
from db.models import Job, Payload
from db.queries.inserts import insert_unless_there, table

PRIORITY_SECONDS = 60.0


def insert_jobs(session: Session, jobs: list[dict[str, Any]]) -> set[UUID]:
    """Insert jobs; returns the ids of those whose id and idempotency key were new.

    A step of priority is worth `PRIORITY_SECONDS` of waiting.
    """
    by_priority: dict[int, list[dict[str, Any]]] = {}
    for job in jobs:
        by_priority.setdefault(job["priority"], []).append(job)
    inserted: set[UUID] = set()
    for priority, alike in by_priority.items():
        statement = insert_unless_there(session, Job).returning(Job.id)
        turn_at = seconds_from_now(-PRIORITY_SECONDS * priority)
        inserted.update(session.scalars(statement.values(turn_at=turn_at), alike))
    return inserted


def insert_payloads() -> Insert:
    return insert(table(Payload))


def jobs_by_idempotency_key(tenant: str, keys: Iterable[str]) -> Select[Job]:
    return select(Job).where(Job.tenant == tenant, Job.idempotency_key.in_(list(keys)))


def refresh_statistics(session: Session) -> None:
    """Let the planner know that a table has grown much; it would guess for a minute otherwise."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("ANALYZE jobs, payloads"))
    else:
        session.execute(text("PRAGMA optimize"))
