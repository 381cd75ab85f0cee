"""Pruning: removes what is older than its retention, a little at a time, while jobs run."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from db import audit
from db.models import AuditEntry
from db.queries import audit as audit_queries
from db.queries.retention import PRUNABLES as OTHERS
from db.queries.retention import Key, Prunable, is_any_under_way
from db.session import Database
from db.upkeep.retention import ClassAges, Retention

PAGE = 1000  # rows read at once
ROWS = 250  # of one transaction
# The part of its time in which a pass works: SQLite has one writer at a time, and the writer of
# jobs has to wait for it.
SHARE = 0.03
IDLE_SHARE = 0.5  # the same while no job is under way
LOOKING_SHARE = 0.2  # the same while the pass finds nothing
MAX_PAUSE_SECONDS = 2.0


def _prune_audit(session: Session, condition: ColumnElement[bool]) -> int:
    """Delete the beginning of the audit chain, and append an entry that records this."""
    last = session.execute(audit_queries.last_of(condition)).first()
    if last is None:
        return 0
    num: int = session.execute(audit_queries.cut(last.sequence)).rowcount  # type: ignore[attr-defined]
    if not num:  # another pass has pruned these rows
        return 0
    through = {"audit_through": last.sequence, "audit_hash": last.hash}
    audit.append(session, audit.Act.PRUNE, through)
    return num


PRUNABLES = (
    *OTHERS,
    Prunable(
        "audit entries",
        "audit",
        (AuditEntry.sequence,),
        lambda ages: audit_queries.is_older(ages.for_all),
        _prune_audit,
    ),
)


def prune(
    database: Database,
    retention: Retention,
    *,
    on_pruned: Callable[[str, int], None] = lambda name, num: None,
    is_ended: Callable[[], bool] = lambda: False,
    pause: Callable[[float], object] = time.sleep,
) -> dict[str, int]:
    """Prune every expired row; returns the number of each kind.

    on_pruned: called after the commit of each transaction
    is_ended:  called between two transactions; if true, pruning stops there
    pause:     sleeps for a number of seconds, so that jobs have the database most of the time
    """
    pruned = dict.fromkeys((each.name for each in PRUNABLES), 0)
    try:
        _prune(database, retention, pruned, on_pruned, is_ended, pause)
    finally:
        if any(pruned.values()):
            with database.write() as session:
                audit.append(session, audit.Act.PRUNE, {"pruned": pruned})
    return pruned


def _prune(
    database: Database,
    retention: Retention,
    pruned: dict[str, int],
    on_pruned: Callable[[str, int], None],
    is_ended: Callable[[], bool],
    pause: Callable[[float], object],
) -> None:
    for prunable, ages in _of_an_age(retention):
        after: Key | None = None
        while not is_ended():
            started_at = time.monotonic()
            with database.read() as session:  # reading takes no lock
                keys = _keys(session, prunable.page(after, PAGE))
                due = _keys(session, prunable.due(ages, keys)) if keys else []
            if not keys:
                break
            after = keys[-1]
            for start in range(0, len(due), ROWS):
                if is_ended():
                    return
                with database.write() as session:
                    some = prunable.among(ages, due[start : start + ROWS])
                    num = prunable.prune(session, some)
                    # A pass may be killed before it has a sum. The audit log records its own cut as
                    # an entry.
                    if num and not any(pruned.values()) and prunable.row_class != "audit":
                        audit.append(session, audit.Act.PRUNE, {"begun_with": prunable.name})
                pruned[prunable.name] += num
                on_pruned(prunable.name, num)
                _rest(pause, started_at, _share(database))
                started_at = time.monotonic()
            if not due:
                _rest(pause, started_at, LOOKING_SHARE)


def _rest(pause: Callable[[float], object], begun: float, share: float) -> None:
    seconds = time.monotonic() - begun
    pause(min(seconds * (1 / share - 1), MAX_PAUSE_SECONDS))


def _share(database: Database) -> float:
    with database.read() as session:
        return SHARE if session.scalar(is_any_under_way()) else IDLE_SHARE


def _keys(session: Session, statement: Select[*tuple[Any, ...]]) -> list[Key]:
    return [tuple(row) for row in session.execute(statement)]


def num_prunable(database: Database, retention: Retention) -> dict[str, int]:
    """The number of rows of each kind that a pass would prune now."""
    due = dict.fromkeys((each.name for each in PRUNABLES), 0)
    for prunable, ages in _of_an_age(retention):
        counted = select(func.count()).select_from(
            select(*prunable.key).where(prunable.is_due(ages)).subquery()
        )
        with database.read() as session:
            due[prunable.name] = session.scalar(counted) or 0
    return due


def _of_an_age(retention: Retention) -> Iterator[tuple[Prunable, ClassAges]]:
    for prunable in PRUNABLES:
        if ages := retention.ages(prunable.row_class):
            yield prunable, ages
