"""Rotation: seals values again that are plain or sealed with an older key.

Rows are read and written in small groups while jobs run. A row is written only if its value has not
changed since it was read. A worker whose ring does not have the new key first keeps sealing with
the old one; the next pass finds the values that it wrote behind this one.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    LargeBinary,
    Select,
    Text,
    bindparam,
    cast,
    func,
    select,
    tuple_,
    type_coerce,
    update,
)

from db import audit
from db.encryption.key_ring import MARK, EncryptionError, KeyRing, Unopenable
from db.encryption.sealed import Placed, SealedBytes, SealedJSON, SealedType, row_key
from db.models import Base
from db.session import Database

log = logging.getLogger(__name__)

ROWS = 100  # rows per transaction
SHARE = 0.1  # the part of its time in which a pass works
EMPTY = ("", "{}", "[]", "null")


@dataclass(frozen=True, slots=True)
class SealedColumn:
    """An encrypted column, and how to read and compare its stored value."""

    column: Column[Any]

    @property
    def type(self) -> SealedType:
        type_ = self.column.type
        assert isinstance(type_, SealedType)
        return type_

    @property
    def name(self) -> str:
        return f"{self.type.table}.{self.type.column}"

    @property
    def keys(self) -> list[Column[Any]]:
        return [self.column.table.c[name] for name in self.type.key]

    @property
    def stored(self) -> ColumnElement[Any]:
        if isinstance(self.type, SealedBytes):
            return type_coerce(self.column, LargeBinary())
        return cast(self.column, Text)

    def by(self, key: str) -> ColumnElement[bool]:
        """Whether a value is sealed with this key."""
        start = f"{MARK}{key}$"
        if isinstance(self.type, SealedBytes):
            return func.substr(self.stored, 1, len(start)) == start.encode()
        quote = '"' if isinstance(self.type, SealedJSON) else ""
        return self.stored.startswith(quote + start, autoescape=True)

    @property
    def is_text(self) -> ColumnElement[bool]:
        """Whether there is a text to seal."""
        if isinstance(self.type, SealedBytes):
            return func.length(self.stored) > 0
        return self.column.is_not(None) & self.stored.not_in(EMPTY)


def sealed_columns() -> list[SealedColumn]:
    return [
        SealedColumn(column)
        for table in Base.metadata.sorted_tables
        for column in table.c
        if isinstance(column.type, SealedType)
    ]


def values_by_key(database: Database, keys: KeyRing | None) -> dict[str, dict[str, int]]:
    """The number of values of each column by key; "" counts plain, "?" unknown ones."""
    num_by_column = {}
    for column in sealed_columns():
        counts = [func.count().filter(column.by(name)) for name in (keys.keys if keys else ())]
        num_sealed = func.count().filter(_is_sealed(column))
        statement = select(func.count(), num_sealed, *counts).where(column.is_text)
        with database.read() as session:
            num, sealed, *by_key = session.execute(statement.select_from(column.column.table)).one()
        named = dict(zip(keys.keys if keys else (), by_key, strict=True))
        num_by_column[column.name] = {**named, "": num - sealed, "?": sealed - sum(by_key)}
    return num_by_column


def _is_sealed(column: SealedColumn) -> ColumnElement[bool]:
    """Whether any key has sealed it; a plain text that looks sealed carries a mark."""
    if isinstance(column.type, SealedBytes):
        start = func.substr(column.stored, 1, len(MARK) + 1)
        return (func.substr(start, 1, len(MARK)) == MARK.encode()) & (start != f"{MARK}$".encode())
    quote = '"' if isinstance(column.type, SealedJSON) else ""
    return column.stored.startswith(quote + MARK, autoescape=True) & ~column.stored.startswith(
        f"{quote}{MARK}$", autoescape=True
    )


def rotate(
    database: Database,
    *,
    on_sealed: Callable[[str, int], None] = lambda name, num: None,
    is_ended: Callable[[], bool] = lambda: False,
    pause: Callable[[float], object] = time.sleep,
) -> dict[str, int]:
    """Seal every value that the first key did not seal; returns their number by column.

    The callbacks are those of `db.upkeep.pruning.prune`.
    """
    keys = database.keys
    if keys is None:
        raise EncryptionError(
            "there are no keys: set TIDEMILL_KEYS or TIDEMILL_KEYS_FILE; "
            "`tidemill keys generate` makes one"
        )
    sealed = {column.name: 0 for column in sealed_columns()}
    with database.write() as session:  # recorded first: the pass may be stopped at any time
        audit.append(session, audit.Act.ROTATE_KEYS, {"to": keys.primary})
    for column in sealed_columns():
        for num, seconds in _rotated(database, column, keys):
            sealed[column.name] += num
            on_sealed(column.name, num)
            if is_ended():
                return sealed
            pause(min(seconds * (1 / SHARE - 1), 2.0))
    return sealed


def _rotated(
    database: Database, column: SealedColumn, keys: KeyRing
) -> Iterator[tuple[int, float]]:
    """Yield the number of values sealed in each transaction, and its seconds."""
    after: tuple[Any, ...] | None = None
    write = (
        update(column.column.table)
        .where(*(key == bindparam(f"of_{key.name}") for key in column.keys))
        .where(column.stored == bindparam("before", type_=column.stored.type))
        .values({column.column.name: bindparam("value", type_=column.column.type)})
    )
    while True:
        started_at = time.monotonic()
        with database.read() as session:
            rows = session.execute(_page(column, keys.primary, after)).all()
        if not rows:
            return
        values = []
        for *key, stored in rows:
            try:
                value = column.type.open(_loaded(column, stored), row_key(key), keys)
            except (Unopenable, ValueError):
                # The value was changed in the database; the others are rotated all the same.
                log.error("text does not open", extra={"column": column.name})
                continue
            values.append(
                {
                    **{f"of_{name}": part for name, part in zip(column.type.key, key, strict=True)},
                    "before": stored,
                    "value": Placed(value, row_key(key)),
                }
            )
        if values:
            with database.write() as session:
                session.connection().execute(write, values)
        after = tuple(rows[-1][:-1])
        yield len(values), time.monotonic() - started_at


def _loaded(column: SealedColumn, stored: Any) -> Any:
    return stored if isinstance(column.type, SealedBytes) else column.type.from_text(stored)


def _page(
    column: SealedColumn, primary: str, after: tuple[Any, ...] | None
) -> Select[*tuple[Any, ...]]:
    statement = select(*column.keys, column.stored).where(column.is_text, ~column.by(primary))
    if after is not None:
        types = [key.type for key in column.keys]
        statement = statement.where(tuple_(*column.keys) > tuple_(*after, types=types))
    return statement.order_by(*column.keys).limit(ROWS)
