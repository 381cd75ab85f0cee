"""Read-only database connections.

On PostgreSQL the transaction is read-only, and a statement runs through a server-side cursor: that
takes a single SELECT, so no statement can end the transaction and then write. On SQLite the file is
opened read-only, and an authorizer refuses everything but reading: attaching a file, a pragma, a
write.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from cli.errors import SourceUnusable

SQLITE_WAIT_SECONDS = 30
# What a SELECT is made of, and the two pragmas by which full-text tables read their own.
SQLITE_READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE})
SQLITE_READING_PRAGMAS = frozenset({"data_version", "page_size"})


@contextmanager
def connected(url: URL, read_only_user: bool) -> Iterator[Connection]:
    """A connection that only reads, rolled back at the end.

    Raises SourceUnusable for other databases without `read_only_user`.

    read_only_user: the user's word that another database refuses this user's writes
    """
    backend = url.get_backend_name()
    if backend == "sqlite":
        engine = _sqlite(url)
    elif backend == "postgresql":
        # Whatever driver is named: psycopg is at hand, and its cursor is what we rely on.
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            hide_parameters=True,
            poolclass=NullPool,
            execution_options={"postgresql_readonly": True},
        )
    else:
        url.get_dialect()  # raises NoSuchModuleError where there is no such thing
        if not read_only_user:
            raise SourceUnusable(
                f"of {backend} it is not known how to only read from it, as from PostgreSQL and "
                "SQLite; if the user of its url may do nothing but read, say "
                "`read_only_user = true` in [source]"
            )
        engine = create_engine(url, hide_parameters=True, poolclass=NullPool)
    with engine.connect() as connection:
        if backend == "sqlite":
            # Only now: SQLAlchemy asks for a pragma when it connects.
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            driver.set_authorizer(_authorize)
        yield connection


def _sqlite(url: URL) -> Engine:
    if url.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise SourceUnusable(
            f"SQLite is read by its own driver; write sqlite:// for {url.drivername}"
        )
    assert url.database is not None
    # As a URI, in which % ? and # mean something else. Opened so, a missing file stays missing.
    file = f"file:{quote(os.path.abspath(url.database))}?mode=ro"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(file, uri=True, timeout=SQLITE_WAIT_SECONDS)
        connection.isolation_level = None
        connection.execute("PRAGMA query_only = ON")
        # Bytes that are no UTF-8 cost their own row, which the contract refuses.
        connection.text_factory = _text
        return connection

    return create_engine("sqlite://", creator=connect, hide_parameters=True, poolclass=NullPool)


def _text(stored: bytes) -> str:
    return stored.decode(errors="surrogateescape")


def _authorize(
    action: int, first: str | None, second: str | None, database: str | None, within: str | None
) -> int:
    """SQLite's authorizer, called while a statement is compiled: allows only reading."""
    if action == sqlite3.SQLITE_FUNCTION:
        allowed = (second or "").lower() != "load_extension"
    elif action == sqlite3.SQLITE_PRAGMA:
        allowed = first in SQLITE_READING_PRAGMAS and second is None
    elif action == sqlite3.SQLITE_UPDATE:
        # A virtual table asks for this when it is opened; nothing is written, nor could be.
        allowed = first == "sqlite_master"
    else:
        allowed = action in SQLITE_READING
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY
