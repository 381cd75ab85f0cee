"""Database: the connection and its transactions."""

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.orm import Session

from db.connection.database_url import read_database_url
from db.connection.lock_holders import is_locked, locked_sentence
from db.connection.url_redaction import masked
from db.encryption.key_ring import KeyRing, key_ring
from db.encryption.sealed import seal_inserts, to_json
from db.encryption.settings import configured_keys
from db.errors import DatabaseError

LOCK_SECONDS = 30.0  # a transaction's wait for a lock, or for another writer of an SQLite file


class Database:
    """A database by its URL. It connects at first use.

    SQLite runs in WAL mode with `synchronous=FULL`, so that commits survive a power cut, and a
    writer takes its lock at the start: a deferred transaction that upgrades fails at once, whatever
    the timeout. Deleted texts are overwritten in the file.
    """

    def __init__(self, url: str | URL, keys: KeyRing | None = None) -> None:
        """keys: for encryption; by default those of the environment or of [encryption]"""
        self.url = url if isinstance(url, URL) else read_database_url(url)
        self._keys = keys

    @cached_property
    def keys(self) -> KeyRing | None:
        """The encryption keys; None: texts are not encrypted. Raises KeysUnusable."""
        return self._keys or key_ring(os.environ) or configured_keys(os.environ, Path.cwd())

    @property
    def dialect(self) -> Literal["postgresql", "sqlite"]:
        return "sqlite" if self.url.get_backend_name() == "sqlite" else "postgresql"

    @property
    def shown_url(self) -> str:
        """The URL with its secrets masked."""
        return masked(self.url.render_as_string(hide_password=False))

    @property
    def file(self) -> Path | None:
        """SQLite's file; None on PostgreSQL."""
        return Path(self.url.database) if self.dialect == "sqlite" and self.url.database else None

    @cached_property
    def engine(self) -> Engine:
        keys = self.keys
        options = {} if keys is None else {"json_serializer": to_json}
        engine = (_sqlite if self.dialect == "sqlite" else _postgresql)(self.url, options)
        if keys is not None:
            seal_inserts(engine, keys)
        return engine

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that may change rows; it commits at its end or not at all."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that changes nothing and, on SQLite, waits for no writer."""
        engine = self.engine.execution_options(tidemill_read_only=True)
        with Session(engine, expire_on_commit=False) as session:
            yield session

    def close(self) -> None:
        if "engine" in vars(self):  # else it has never connected, and perhaps cannot
            self.engine.dispose()


def _sqlite(url: URL, options: Mapping[str, Any]) -> Engine:
    if url.database:
        folder = Path(url.database).parent
        if not folder.is_dir():
            raise DatabaseError(
                f"the database's folder {str(folder)!r} does not exist; make it first"
            )
    engine = create_engine(
        url, hide_parameters=True, connect_args={"timeout": LOCK_SECONDS}, **options
    )

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, record: Any) -> None:
        connection.isolation_level = None  # BEGIN is sent by the listener below
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            "secure_delete = ON",  # Debian's SQLite overwrites what is deleted; any other does now
            f"busy_timeout = {1000 * LOCK_SECONDS:.0f}",
        ):
            connection.execute(f"PRAGMA {pragma}")
        # SQLite's own function knows only the 26 letters of ASCII.
        connection.create_function("lower", 1, _lower, deterministic=True)
        connection.create_function("sha256_hex", 1, _sha256_hex, deterministic=True)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("tidemill_read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    @event.listens_for(engine, "handle_error")
    def say_by_whom_it_is_locked(context: ExceptionContext) -> None:
        if is_locked(context.original_exception) and url.database:
            context.original_exception.args = (locked_sentence(url.database),)

    return engine


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()


def _sha256_hex(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _postgresql(url: URL, options: Mapping[str, Any]) -> Engine:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    engine = create_engine(
        url,
        pool_pre_ping=True,
        hide_parameters=True,  # an error's text must not hold users' text
        connect_args=_connect_args(url),
        **options,
    )

    @event.listens_for(engine, "handle_error")
    def keep_the_first_line(context: ExceptionContext) -> None:
        # What follows it may be "DETAIL: Failing row contains (...)".
        for error in (context.original_exception, context.sqlalchemy_exception):
            if error is not None:
                error.args = tuple(str(arg).partition("\n")[0] for arg in error.args)

    return engine


def _connect_args(url: URL) -> dict[str, Any]:
    """Our connection parameters; those in the URL take precedence."""
    args: dict[str, Any] = {
        "connect_timeout": 10,
        # A server that vanished never answers, and Linux would wait two hours.
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
        "application_name": "tidemill",
    }
    args = {name: value for name, value in args.items() if name not in url.query}
    # No transaction is open while a model runs, so an idle transaction is a fault.
    args["options"] = (
        f"-c lock_timeout={1000 * LOCK_SECONDS:.0f} -c statement_timeout=120s "
        "-c idle_in_transaction_session_timeout=60s"
    )
    if theirs := url.query.get("options"):
        # If a setting is given twice, the last value counts.
        args["options"] = " ".join(
            [args["options"], *([theirs] if isinstance(theirs, str) else theirs)]
        )
    return args


def database_from_environment() -> Database:
    """The database of `TIDEMILL_DATABASE_URL`, or of a `tidemill up` in this folder."""
    from db.connection.address import database_address

    return Database(database_address(os.environ, Path.cwd()))
