"""Health: the live workers, the jobs they hold, and overdue jobs."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from db.clock import now, seconds_from_now
from db.lane import Lane
from db.models import Job, Leadership, WorkerRow
from db.queries.conditions import QUEUED, RUNNING
from db.session import Database
from db.states import UNFINISHED

DISPATCHER = "dispatcher"  # the leadership for publishing; there are other leaderships

# Older than this, a sweep (one each second) would have handled it: no process sweeps.
OVERDUE_SECONDS = 15.0
WAITING_SECONDS = 60.0  # of an interactive job


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """A worker that lives, or that holds jobs although it does not."""

    name: str
    lives: bool
    leads: bool
    models: tuple[str, ...]
    num_held: int
    oldest_seconds: float | None  # since its oldest running job was started


@dataclass(frozen=True, slots=True)
class Overdue:
    """Jobs that should have made progress by now."""

    num_left: int  # running jobs of dead workers that were not requeued
    num_past_deadline: int  # jobs that are past their deadline and were not expired
    num_waiting: int  # jobs of the interactive lane that wait for a served model

    def __bool__(self) -> bool:
        return bool(self.num_left or self.num_past_deadline or self.num_waiting)


@dataclass(frozen=True, slots=True)
class Health:
    workers: tuple[WorkerHealth, ...]
    overdue: Overdue

    @property
    def alive(self) -> list[WorkerHealth]:
        return [worker for worker in self.workers if worker.lives]


def health(database: Database) -> Health:
    with database.read() as session:
        workers = tuple(_workers(session))
        served = {model for worker in workers if worker.lives for model in worker.models}
        return Health(workers, _overdue(session, served))


def _workers(session: Session) -> Iterator[WorkerHealth]:
    jobs_by_owner = {
        str(owner): (num_held, since)
        for owner, num_held, since in session.execute(
            select(Job.owner, func.count(), func.min(Job.started_at))
            .where(Job.state == RUNNING, Job.owner.is_not(None))
            .group_by(Job.owner)
        )
    }
    at: datetime = session.execute(select(now())).scalar_one()
    leader = session.scalar(
        select(Leadership.leader).where(Leadership.name == DISPATCHER, Leadership.until >= now())
    )
    rows = {
        row.name: row
        for row in session.scalars(select(WorkerRow).where(WorkerRow.alive_until >= at))
    }
    for name in sorted({*rows, *jobs_by_owner}):
        num_held, since = jobs_by_owner.get(name, (0, None))
        yield WorkerHealth(
            name=name,
            lives=name in rows,
            leads=name == leader,
            models=tuple(sorted(rows[name].room)) if name in rows else (),
            num_held=num_held,
            oldest_seconds=(at - since).total_seconds() if since is not None else None,
        )


def _overdue(session: Session, served: set[str]) -> Overdue:
    long_ago = seconds_from_now(-OVERDUE_SECONDS)
    waited = seconds_from_now(-WAITING_SECONDS)

    def count(*conditions: object) -> int:
        jobs = select(func.count()).select_from(Job).where(*conditions)  # type: ignore[arg-type]
        return session.execute(jobs).scalar_one()

    return Overdue(
        num_left=count(Job.state == RUNNING, Job.lease_until < long_ago),
        num_past_deadline=count(
            Job.deadline < long_ago, Job.finished_at.is_(None), Job.state.in_(UNFINISHED)
        ),
        num_waiting=count(
            Job.state == QUEUED,
            Job.lane == Lane.INTERACTIVE,
            Job.model.in_(served),
            Job.created_at < waited,
            or_(Job.not_before.is_(None), Job.not_before < waited),
        ),
    )
