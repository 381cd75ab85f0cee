"""Statements of the content cache: read, insert and remove entries.

A transaction that locks several entries locks them in order of their keys, or skips locked ones, so
that no two transactions wait for each other.
"""

from collections.abc import Sequence
from functools import cache
from uuid import UUID

from sqlalchemy import Delete, Select, Update, bindparam, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningDelete

from db.clock import now, seconds_from_now
from db.models import CacheEntry, Job
from db.queries.inserts import table


def outputs_of(keys: Sequence[bytes], ttl_seconds: float) -> Select[bytes, bytes]:
    """The (key, output) of the entries that exist and have not expired."""
    return _outputs(ttl_seconds).params(keys=keys)


@cache
def _outputs(ttl_seconds: float) -> Select[bytes, bytes]:
    return select(CacheEntry.key, CacheEntry.output).where(
        CacheEntry.key.in_(bindparam("keys", expanding=True)),
        CacheEntry.created_at > seconds_from_now(-ttl_seconds),
    )


def keys_among(keys: Sequence[bytes], ttl_seconds: float) -> Select[bytes]:
    """The keys of the entries that exist and have not expired."""
    return select(CacheEntry.key).where(
        CacheEntry.key.in_(keys), CacheEntry.created_at > seconds_from_now(-ttl_seconds)
    )


def insert_entries(session: Session) -> postgresql.Insert | sqlite.Insert:
    """Insert outputs; one that was computed again after it expired replaces the old one."""
    return _insert(session.get_bind().dialect.name)


@cache  # building the statement takes as long as writing a dozen entries
def _insert(dialect: str) -> postgresql.Insert | sqlite.Insert:
    build = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = build(table(CacheEntry)).values(created_at=now(), used_at=now())
    replaced = ("output", "num_bytes", "created_at", "used_at")
    return statement.on_conflict_do_update(
        index_elements=["key"], set_={name: statement.excluded[name] for name in replaced}
    )


def touch(keys: Sequence[bytes], age_seconds: float) -> Update:
    """Mark entries as used, if their last mark is older than this."""
    stale = CacheEntry.used_at < seconds_from_now(-age_seconds)
    stale_keys = select(CacheEntry.key).where(CacheEntry.key.in_(keys), stale)
    return (
        update(CacheEntry)
        .where(CacheEntry.key.in_(stale_keys.with_for_update(skip_locked=True)))
        .values(used_at=now())
        .execution_options(synchronize_session=False)
    )


def expired(ttl_seconds: float, limit: int) -> Select[bytes]:
    """The keys of up to `limit` expired entries."""
    too_old = CacheEntry.created_at <= seconds_from_now(-ttl_seconds)
    return select(CacheEntry.key).where(too_old).limit(limit)


def forget_those_of_jobs(job_ids: Sequence[UUID]) -> Delete:
    """Delete every entry that one of the jobs, or another of its tenant's, may have caused."""
    tenants = select(Job.tenant).where(Job.id.in_(job_ids))
    return (
        delete(CacheEntry)
        .where(or_(CacheEntry.tenant.is_(None), CacheEntry.tenant.in_(tenants)))
        .execution_options(synchronize_session=False)
    )


def total_bytes() -> Select[int]:
    return select(func.coalesce(func.sum(CacheEntry.num_bytes), 0))


def least_recently_used(limit: int) -> Select[bytes, int]:
    """The (key, bytes) of the least recently used entries."""
    return (
        select(CacheEntry.key, CacheEntry.num_bytes)
        .order_by(CacheEntry.used_at, CacheEntry.num_bytes)
        .limit(limit)
    )


def forget(keys: Sequence[bytes]) -> ReturningDelete[bytes]:
    """Delete entries; returns the keys of those that no other transaction had locked."""
    free = select(CacheEntry.key).where(CacheEntry.key.in_(keys))
    return (
        delete(CacheEntry)
        .where(CacheEntry.key.in_(free.with_for_update(skip_locked=True)))
        .returning(CacheEntry.key)
        .execution_options(synchronize_session=False)
    )
