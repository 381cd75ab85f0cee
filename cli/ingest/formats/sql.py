"""SQL: a query whose columns are the fields. It can only read."""

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    NoSuchModuleError,
    SQLAlchemyError,
)

from cli.errors import SourceUnusable
from cli.ingest.formats import read_only
from cli.ingest.source import CheckColumns, Row, typed_fields
from db.connection.url_redaction import masked

ROWS_AT_ONCE = 100  # each may hold a whole document
COMMENT = r"--[^\n]*(?:\n|$)|/\*.*?\*/"
FIRST_WORD = re.compile(rf"(?:\s|\(|{COMMENT})*([A-Za-z]+)", re.DOTALL)
READING_WORDS = frozenset({"SELECT", "WITH", "VALUES", "TABLE"})


class SqlSource:
    """A query, read through a server-side cursor if the database has one.

    It runs as a single statement in a read-only transaction, so a statement that writes is refused.
    `read_only_user` says that the database itself refuses this user's writes, for databases where
    we cannot enforce that.
    """

    exact_types = False  # SQLite has no booleans, and a NUMERIC is a Decimal

    def __init__(self, url: str, query: str, *, read_only_user: bool = False) -> None:
        try:
            self._url = make_url(url)
        except (ArgumentError, ValueError):  # the latter of a port that is no number
            raise SourceUnusable(
                "the source's url cannot be read; it looks like "
                "postgresql://user:password@host/name or sqlite:////path/to/file.db"
            ) from None
        self._query = query
        self._read_only_user = read_only_user
        self.name = f"the query on {masked(url)}"
        # For a better sentence than the database's own; it is the database that refuses.
        first_word = FIRST_WORD.match(query)
        if first_word is not None and first_word[1].upper() not in READING_WORDS:
            raise SourceUnusable(
                f"{self.name} begins with {first_word[1].upper()}; a source is only read, so it "
                "must be a SELECT (another statement changes something, or returns no rows)"
            )

    @property
    def fraction(self) -> float | None:
        return None

    def rows(self, check_columns: CheckColumns) -> Iterator[Row]:
        url = self._url
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            raise SourceUnusable(f"there is no database file {url.database or ''}".rstrip())
        try:
            with read_only.connected(url, self._read_only_user) as connection:
                yield from self._rows(connection, check_columns)
        except NoSuchModuleError:
            raise SourceUnusable(f"SQLAlchemy knows no database {url.drivername!r}") from None
        except ModuleNotFoundError as error:
            raise SourceUnusable(
                f"the driver for {url.drivername} is not installed: no module {error.name!r}"
            ) from error
        except DataError as error:
            # The database's sentence quotes the value.
            kind = type(error.orig).__name__
            raise SourceUnusable(f"{self.name} failed: a value does not convert ({kind})") from None
        except DBAPIError as error:
            raise SourceUnusable(f"{self.name} failed: {_reason(error.orig)}") from error
        except (SQLAlchemyError, sqlite3.Warning) as error:
            raise SourceUnusable(f"{self.name} failed: {_reason(error)}") from error

    def _rows(self, connection: Connection, check_columns: CheckColumns) -> Iterator[Row]:
        # The driver's own words: SQLAlchemy would take a colon for a parameter, and the
        # driver a percent sign.
        options = {"yield_per": ROWS_AT_ONCE, "no_parameters": True}
        result = connection.exec_driver_sql(self._query, execution_options=options)
        if not result.returns_rows:
            raise SourceUnusable(f"{self.name} returns no rows; it must be a SELECT")
        columns = list(result.keys())
        check_columns(columns)
        for position, row in enumerate(result, start=1):
            yield Row(
                position, f"row {position}", typed_fields(dict(zip(columns, row, strict=True)))
            )


def _reason(error: BaseException | None) -> str:
    """The first line of a driver's message; the rest may quote rows."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    only_read = ("read-only", "not authorized", "readonly", "one statement", "multiple commands")
    hint = "; a source is only read: the query must be one SELECT"
    lines[0] = lines[0].rstrip(".")
    return lines[0] + (hint if any(word in lines[0] for word in only_read) else "")
