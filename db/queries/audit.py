"""Statements of the audit: append to its chain, and read it."""

import json
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Insert,
    Select,
    String,
    bindparam,
    delete,
    false,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate
from sqlalchemy.sql.functions import FunctionElement

from db.clock import now, seconds_from_now
from db.models import AuditEntry, AuditHead
from db.queries.inserts import insert_unless_there, table

CHAIN = "audit"


class sha256_hex(FunctionElement[str]):
    """The SHA-256 of a text, in hexadecimal digits; on SQLite db.session defines it."""

    type = String(64)
    name = "sha256_hex"
    inherit_cache = True


@compiles(sha256_hex, "postgresql")
def _postgresql(element: sha256_hex, compiler: SQLCompiler, **kw: Any) -> str:
    text = compiler.process(element.clauses, **kw)
    return f"encode(sha256(convert_to({text}, 'UTF8')), 'hex')"


def append_entry(connection: Connection, content: str, row: Mapping[str, Any]) -> bool:
    """Append an entry to the chain; False if no chain was started.

    Concurrent appends wait for the commit. The database computes the hash, since reading the last
    one and computing here would take another round trip under that lock. Every submit does this, so
    the statements use the bare tables and are built once.
    """
    if connection.dialect.name == "postgresql":
        appended = connection.execute(_append_at_once(), {**row, "content": content})
        return appended.first() is not None
    return _append_on_sqlite(connection, content, row)


ADVANCE = """
UPDATE audit_heads
SET sequence = sequence + 1, previous_hash = hash, hash = sha256_hex(hash || ?)
WHERE name = ? RETURNING sequence, previous_hash, hash
"""
INSERT = """
INSERT INTO audit (at, actor, act, objects, sequence, previous_hash, hash)
VALUES (?, ?, ?, ?, ?, ?, ?)
"""


def _append_on_sqlite(connection: Connection, content: str, row: Mapping[str, Any]) -> bool:
    """Append through the driver.

    As SQLAlchemy statements the two take three times as long, which is a tenth of a single submit.
    """
    driver: Any = connection.connection.driver_connection
    at = row["at"].astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
    try:
        places = driver.execute(ADVANCE, (content, CHAIN)).fetchall()
        for place in places:
            entry = (at, row["actor"], row["act"], json.dumps(row["objects"]), *place)
            driver.execute(INSERT, entry)
    except sqlite3.Error as error:
        raise OperationalError(
            "an entry of the audit", None, error, hide_parameters=True
        ) from error
    return bool(places)


@cache
def _advance_head() -> ReturningUpdate[Any]:
    head = table(AuditHead)
    content = bindparam("content", type_=String)
    return (
        update(head)
        .where(head.c.name == CHAIN)
        .values(
            sequence=head.c.sequence + 1,
            previous_hash=head.c.hash,
            hash=sha256_hex(head.c.hash + content),
        )
        .returning(head.c.sequence, head.c.previous_hash, head.c.hash)
    )


@cache
def _append_at_once() -> ReturningInsert[int]:
    """Append the entry and update the head in one statement, for PostgreSQL only."""
    entry = table(AuditEntry)
    advanced = _advance_head().cte("advanced")
    own = ("at", "actor", "act", "objects")
    bound = [bindparam(name, type_=entry.c[name].type) for name in own]
    names = [*own, "sequence", "previous_hash", "hash"]
    chained = select(*bound, advanced.c.sequence, advanced.c.previous_hash, advanced.c.hash)
    return insert(entry).from_select(names, chained).returning(entry.c.sequence)


def insert_head(session: Session, genesis: str) -> Insert:
    """Start the chain, unless it has been started."""
    first = {"name": CHAIN, "sequence": 0, "previous_hash": genesis, "hash": genesis}
    return insert_unless_there(session, AuditHead).values(first)


def entries(
    act: str | None, actor: str | None, since: datetime | None, until: datetime | None
) -> Select[AuditEntry]:
    statement = select(AuditEntry)
    if act is not None:
        statement = statement.where(AuditEntry.act == act)
    if actor is not None:
        statement = statement.where(AuditEntry.actor.contains(actor, autoescape=True))
    if since is not None:
        statement = statement.where(AuditEntry.at >= since)
    if until is not None:
        statement = statement.where(AuditEntry.at < until)
    return statement


def page(
    statement: Select[AuditEntry], after: int | None, limit: int, newest_first: bool
) -> Select[AuditEntry]:
    key = AuditEntry.sequence
    if after is not None:
        statement = statement.where(key < after if newest_first else key > after)
    return statement.order_by(key.desc() if newest_first else key).limit(limit)


def places(after: int | None, limit: int) -> Select[int, str, str]:
    """The (sequence, previous_hash, hash) of entries, in order."""
    key = AuditEntry.sequence
    statement = select(key, AuditEntry.previous_hash, AuditEntry.hash).order_by(key).limit(limit)
    return statement if after is None else statement.where(key > after)


def between(first: int, last: int) -> Select[AuditEntry]:
    """The entries from one sequence to another, both included."""
    key = AuditEntry.sequence
    return select(AuditEntry).where(key >= first, key <= last).order_by(key)


def is_older(age_seconds: float | None) -> ColumnElement[bool]:
    """Entries before the first younger one; so the last entry is never deleted.

    An entry with an instant in the future was written by a wrong clock and has no known age. It
    does not keep later entries until then.
    """
    if age_seconds is None:
        return false()
    younger = aliased(AuditEntry)
    first = select(func.min(younger.sequence)).where(
        younger.at > seconds_from_now(-age_seconds), younger.at <= now()
    )
    return AuditEntry.sequence < first.scalar_subquery()


def last_of(condition: ColumnElement[bool]) -> Select[int, str]:
    key = AuditEntry.sequence
    return select(key, AuditEntry.hash).where(condition).order_by(key.desc()).limit(1)


def cut(sequence: int) -> Delete:
    """Delete the beginning of the chain, up to and including this entry."""
    return (
        delete(AuditEntry)
        .where(AuditEntry.sequence <= sequence)
        .execution_options(synchronize_session=False)
    )
