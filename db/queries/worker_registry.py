"""Worker registry: the live workers and their capacity."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import Delete, Select, delete, insert, or_, select, update
from sqlalchemy.orm import Session

from db.clock import now, seconds_from_now
from db.models import WorkerRow


def report_worker(
    session: Session,
    name: str,
    room: Mapping[str, int],
    num_running: int,
    alive_seconds: float,
    engines: list[dict[str, Any]] | None = None,
) -> None:
    """Record that a worker lives, how much it runs, and its capacity for each model."""
    alive_until = seconds_from_now(alive_seconds)
    updated = session.execute(
        update(WorkerRow)
        .where(WorkerRow.name == name)
        .values(room=dict(room), engines=engines, num_running=num_running, alive_until=alive_until)
        .returning(WorkerRow.name)
        .execution_options(synchronize_session=False)
    )
    if updated.scalar() is None:
        session.execute(
            insert(WorkerRow).values(
                name=name,
                room=dict(room),
                engines=engines,
                num_running=num_running,
                started_at=now(),
                alive_until=alive_until,
            )
        )


def forget_worker(name: str) -> Delete:
    return delete(WorkerRow).where(or_(WorkerRow.name == name, WorkerRow.alive_until < now()))


def live_workers() -> Select[WorkerRow]:
    return select(WorkerRow).where(WorkerRow.alive_until >= now()).order_by(WorkerRow.name)


@cache
def room_of_live_workers() -> Select[dict[str, int]]:
    """The capacity of each live worker and nothing else, since this runs many times a second."""
    return select(WorkerRow.room).where(WorkerRow.alive_until >= now())
