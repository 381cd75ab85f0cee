"""The audit: its chain goes on, and is read."""

from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Delete,
    Insert,
    Row,
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
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import ReturningUpdate
from sqlalchemy.sql.functions import FunctionElement

from db.clock import seconds_from_now
from db.models import AuditEntry, AuditHead
from db.queries.inserts import insert_unless_there, table

CHAIN = "audit"


class sha256_hex(FunctionElement[str]):
    """The SHA-256 of a text, in hexadecimal digits."""

    type = String(64)
    name = "sha256_hex"
    inherit_cache = True


@compiles(sha256_hex, "postgresql")
def _postgresql(element: sha256_hex, compiler: SQLCompiler, **kw: Any) -> str:
    text = compiler.process(element.clauses, **kw)
    return f"encode(sha256(convert_to({text}, 'UTF8')), 'hex')"


@compiles(sha256_hex, "sqlite")
def _sqlite(element: sha256_hex, compiler: SQLCompiler, **kw: Any) -> str:
    return f"sha256_hex({compiler.process(element.clauses, **kw)})"  # of db.session


def advance_head(session: Session, content: str) -> Row[int, str, str] | None:
    """Make an entry's hash the chain's last; returns (sequence, previous_hash, hash).

    None: no chain was begun. Whoever comes meanwhile waits for the commit. In the database,
    for to read the hash and to compute here would be a way more under that lock.
    """
    return session.execute(_advance_head(), {"content": content}).first()


@cache
def _advance_head() -> ReturningUpdate[int, str, str]:
    content = bindparam("content", type_=String)
    return (
        update(AuditHead)
        .where(AuditHead.name == CHAIN)
        .values(
            sequence=AuditHead.sequence + 1,
            previous_hash=AuditHead.hash,
            hash=sha256_hex(AuditHead.hash + content),
        )
        .returning(AuditHead.sequence, AuditHead.previous_hash, AuditHead.hash)
        .execution_options(synchronize_session=False)
    )


def insert_head(session: Session, genesis: str) -> Insert:
    """Begin the chain, unless somebody has."""
    first = {"name": CHAIN, "sequence": 0, "previous_hash": genesis, "hash": genesis}
    return insert_unless_there(session, AuditHead).values(first)


def insert_entry() -> Insert:
    return insert(table(AuditEntry))


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


def is_older(age_seconds: float | None) -> ColumnElement[bool]:
    """Entries before the first that is younger; so the last never goes."""
    if age_seconds is None:
        return false()
    younger = aliased(AuditEntry)
    first = select(func.min(younger.sequence)).where(younger.at > seconds_from_now(-age_seconds))
    return AuditEntry.sequence < first.scalar_subquery()


def last_of(condition: ColumnElement[bool]) -> Select[int, str]:
    key = AuditEntry.sequence
    return select(key, AuditEntry.hash).where(condition).order_by(key.desc()).limit(1)


def cut(sequence: int) -> Delete:
    """Delete the chain's beginning, up to and with this entry."""
    return (
        delete(AuditEntry)
        .where(AuditEntry.sequence <= sequence)
        .execution_options(synchronize_session=False)
    )
