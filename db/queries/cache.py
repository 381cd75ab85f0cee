"""The content cache: what models answered is read, kept, and forgotten in time.

Whoever locks several entries locks them in order of their keys, or skips what is locked, so
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
    """The (key, output) of those that are there and not too old."""
    return _outputs(ttl_seconds).params(keys=keys)


@cache
def _outputs(ttl_seconds: float) -> Select[bytes, bytes]:
    return select(CacheEntry.key, CacheEntry.output).where(
        CacheEntry.key.in_(bindparam("keys", expanding=True)),
        CacheEntry.created_at > seconds_from_now(-ttl_seconds),
    )


def keys_among(keys: Sequence[bytes], ttl_seconds: float) -> Select[bytes]:
    """The keys of those that are there and not too old."""
    return select(CacheEntry.key).where(
        CacheEntry.key.in_(keys), CacheEntry.created_at > seconds_from_now(-ttl_seconds)
    )


def insert_entries(session: Session) -> postgresql.Insert | sqlite.Insert:
    """Keep outputs; one that was computed again, because it was too old, replaces the old."""
    return _insert(session.get_bind().dialect.name)


@cache  # building it takes as long as writing a dozen entries
def _insert(dialect: str) -> postgresql.Insert | sqlite.Insert:
    build = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = build(table(CacheEntry)).values(created_at=now(), used_at=now())
    replaced = ("output", "num_bytes", "created_at", "used_at")
    return statement.on_conflict_do_update(
        index_elements=["key"], set_={name: statement.excluded[name] for name in replaced}
    )


def touch(keys: Sequence[bytes], age_seconds: float) -> Update:
    """Note that entries were used, where the last note is so old."""
    stale = CacheEntry.used_at < seconds_from_now(-age_seconds)
    stale_keys = select(CacheEntry.key).where(CacheEntry.key.in_(keys), stale)
    return (
        update(CacheEntry)
        .where(CacheEntry.key.in_(stale_keys.with_for_update(skip_locked=True)))
        .values(used_at=now())
        .execution_options(synchronize_session=False)
    )


def expired(ttl_seconds: float, limit: int) -> Select[bytes]:
    """The keys of some entries that are too old to be of use."""
    too_old = CacheEntry.created_at <= seconds_from_now(-ttl_seconds)
    return select(CacheEntry.key).where(too_old).limit(limit)


def forget_those_of_jobs(job_ids: Sequence[UUID]) -> Delete:
    """Remove every answer that one of the jobs, or another of its tenant's, may have caused."""
    tenants = select(Job.tenant).where(Job.id.in_(job_ids))
    return (
        delete(CacheEntry)
        .where(or_(CacheEntry.tenant.is_(None), CacheEntry.tenant.in_(tenants)))
        .execution_options(synchronize_session=False)
    )


def total_bytes() -> Select[int]:
    return select(func.coalesce(func.sum(CacheEntry.num_bytes), 0))


def least_recently_used(limit: int) -> Select[bytes, int]:
    """The (key, bytes) of those that were not used for longest."""
    return (
        select(CacheEntry.key, CacheEntry.num_bytes)
        .order_by(CacheEntry.used_at, CacheEntry.num_bytes)
        .limit(limit)
    )


def forget(keys: Sequence[bytes]) -> ReturningDelete[bytes]:
    """Remove entries; returns the keys of those that no other transaction had locked."""
    free = select(CacheEntry.key).where(CacheEntry.key.in_(keys))
    return (
        delete(CacheEntry)
        .where(CacheEntry.key.in_(free.with_for_update(skip_locked=True)))
        .returning(CacheEntry.key)
        .execution_options(synchronize_session=False)
    )
