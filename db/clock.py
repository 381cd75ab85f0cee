"""Instants: how the database stores them, and its own clock as SQL.

Leases compare instants written by different machines, so no worker's own clock may set them.
`now()` and `seconds_from_now()` are evaluated by the database, in the text format that SQLAlchemy
stores on SQLite.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, DateTime, Dialect, Float, TypeDecorator, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class Instant(TypeDecorator[datetime]):
    """A point in time, aware and in UTC on both databases."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class seconds_from_now(FunctionElement[datetime]):
    """The database's clock plus a number of seconds, which may be an SQL expression."""

    type = Instant()
    name = "seconds_from_now"
    inherit_cache = True

    def __init__(self, seconds: float | ColumnElement[float]) -> None:
        super().__init__(literal(seconds, Float) if isinstance(seconds, int | float) else seconds)


def now() -> seconds_from_now:
    """The database's clock."""
    return seconds_from_now(0)


class seconds_after(FunctionElement[datetime]):
    """An instant plus a number of seconds, to the millisecond; the number may be an expression."""

    type = Instant()
    name = "seconds_after"
    inherit_cache = True

    def __init__(self, instant: datetime, seconds: ColumnElement[float]) -> None:
        super().__init__(literal(instant, Instant()), seconds)


class microseconds_between(FunctionElement[int]):
    """The exact time from one column of instants to another; NULL where one is NULL."""

    type = BigInteger()
    name = "microseconds_between"
    inherit_cache = True

    def __init__(self, start: Any, end: Any) -> None:
        super().__init__(start, end)


@compiles(seconds_from_now, "postgresql")
def _postgresql(element: seconds_from_now, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"(statement_timestamp() + make_interval(secs => ({seconds})::double precision))"


@compiles(seconds_from_now, "sqlite")
def _sqlite(element: seconds_from_now, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    # %f has three decimals; SQLAlchemy writes six, and texts are compared.
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', ({seconds}) || ' seconds') || '000')"


@compiles(seconds_after, "postgresql")
def _postgresql_after(element: seconds_after, compiler: SQLCompiler, **kw: Any) -> str:
    instant, seconds = (compiler.process(each, **kw) for each in element.clauses)
    return f"({instant} + make_interval(secs => ({seconds})::double precision))"


@compiles(seconds_after, "sqlite")
def _sqlite_after(element: seconds_after, compiler: SQLCompiler, **kw: Any) -> str:
    instant, seconds = (compiler.process(each, **kw) for each in element.clauses)
    return f"(strftime('%Y-%m-%d %H:%M:%f', {instant}, ({seconds}) || ' seconds') || '000')"


@compiles(microseconds_between, "postgresql")
def _postgresql_between(element: microseconds_between, compiler: SQLCompiler, **kw: Any) -> str:
    start, end = (compiler.process(each, **kw) for each in element.clauses)
    return f"(EXTRACT(EPOCH FROM ({end} - {start})) * 1000000)::bigint"


@compiles(microseconds_between, "sqlite")
def _sqlite_between(element: microseconds_between, compiler: SQLCompiler, **kw: Any) -> str:
    start, end = (_sqlite_microseconds(compiler.process(each, **kw)) for each in element.clauses)
    return f"({end} - {start})"


def _sqlite_microseconds(instant: str) -> str:
    # SQLite's own functions round to milliseconds. The text is `YYYY-MM-DD HH:MM:SS.ffffff`.
    return (
        f"(CAST(strftime('%s', substr({instant}, 1, 19)) AS INTEGER) * 1000000"
        f" + CAST(substr({instant}, 21) AS INTEGER))"
    )
