"""Leaderships: one worker among many does what only one may."""

from functools import cache

from sqlalchemy import Delete, delete, or_, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from db.clock import now, seconds_from_now
from db.models import Leadership
from db.queries.inserts import insert_unless_there


def lead(session: Session, name: str, leader: str, seconds: float) -> bool:
    """Take or keep a leadership; False while another holds it."""
    if session.scalar(_keep(name, leader, seconds)) is not None:
        return True
    first = session.execute(
        insert_unless_there(session, Leadership)
        .values(name=name, leader=leader, until=seconds_from_now(seconds))
        .returning(Leadership.name)
    ).scalar()
    return first is not None


@cache
def _keep(name: str, leader: str, seconds: float) -> ReturningUpdate[str]:
    return (
        update(Leadership)
        .where(
            Leadership.name == name,
            or_(Leadership.leader == leader, Leadership.until < now()),
        )
        .values(leader=leader, until=seconds_from_now(seconds))
        .returning(Leadership.name)
        .execution_options(synchronize_session=False)
    )


def resign(name: str, leader: str) -> Delete:
    return delete(Leadership).where(Leadership.name == name, Leadership.leader == leader)
