"""Sealed column types: encrypt values when there are keys, and decrypt them for readers.

A column type does not see the row of its value, but the row is authenticated. So the row's key
comes from both sides:

- *Writing*: `seal_inserts` inspects each insert of an engine and passes every value together with
  the key of its row (`Placed`). With keys, a value without one is refused, so no statement can
  forget it; an empty value contains no text and stays as it is.
- *Reading*: the type's column expression selects the key of the row and the value as one text, and
  the value can be opened only with it.

Without keys the statements are unchanged, except that a plain value that looks sealed is marked as
plain, so that nobody can forge one.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, Dialect, Engine, Insert, LargeBinary, Text, TypeDecorator, event
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

from db.encryption.key_ring import (
    MARK,
    NAME,
    EncryptionError,
    KeyRing,
    KeysUnusable,
    Unopenable,
)

PLAIN = f"{MARK}$plain$"  # before a plain text that begins with MARK; no key is named `plain`


class SealedValue(str):
    """A sealed value, which contains no character that JSON would escape."""

    __slots__ = ()


_encode = json.JSONEncoder(separators=(",", ":")).encode


def to_json(value: Any) -> str:
    """A column's value as JSON; a sealed one, which is long, is not searched for escapes."""
    return f'"{value}"' if type(value) is SealedValue else json.dumps(value)


@dataclass(frozen=True, slots=True)
class Placed:
    """A value and the key of its row."""

    value: Any
    row_key: str


def row_key(values: Iterable[Any]) -> str:
    """The key of a row as it is authenticated, in a form that does not depend on the database."""
    return "/".join(_part(value) for value in values)


def _part(value: Any) -> str:
    if isinstance(value, UUID):
        return value.hex
    return value.hex() if isinstance(value, bytes) else str(value)


_passed_over: ContextVar[list[str] | None] = ContextVar("passed_over", default=None)


@contextmanager
def passing_over_unopenable() -> Iterator[list[str]]:
    """Read unopenable texts as None within this context, and add their places to the list.

    This is for readers that must continue with the next row; all others get the error.
    """
    places: list[str] = []
    token = _passed_over.set(places)
    try:
        yield places
    finally:
        _passed_over.reset(token)


def keys_of(dialect: Dialect) -> KeyRing | None:
    return getattr(dialect, "tidemill_keys", None)


class SealedType(TypeDecorator[Any]):
    """A column type with encrypted values."""

    impl: Any = Text
    impl_options: Mapping[str, Any] = {}
    mark: Any = MARK  # the beginning of a sealed value, in the column's type
    cache_ok = True

    def __init__(self, table: str, column: str, key: tuple[str, ...] = ("job_id",)) -> None:
        """key: the columns that identify the row, in the order of `row_key`"""
        super().__init__(**self.impl_options)
        self.table, self.column, self.key = table, column, key

    def encode(self, value: Any) -> bytes:
        raise NotImplementedError

    def decode(self, plain: bytes) -> Any:
        raise NotImplementedError

    def as_stored(self, sealed: str) -> Any:
        """A sealed value in the column's type."""
        return SealedValue(sealed)

    def as_plain(self, value: Any) -> Any:
        """A value in the column's type, without keys."""
        return value

    def from_text(self, text: str) -> Any:
        """Parse the column's value from the text form of the database."""
        return text

    def sealed_in(self, stored: Any) -> tuple[str, str] | None:
        """The key's name and the rest of a sealed value; None for a plain one."""
        if not isinstance(stored, str) or not stored.startswith(MARK):
            return None
        name, found, rest = stored[len(MARK) :].partition("$")
        return (name, rest) if found and NAME.fullmatch(name) else None

    def plain_in(self, stored: Any) -> Any:
        return stored

    def place(self, key: str) -> str:
        return f"{self.table}.{self.column}/{key}"

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        of_impl = self.impl_instance.bind_processor(dialect)
        to_column = self._to_column(keys_of(dialect))
        if to_column is None:
            return of_impl
        if of_impl is None:
            return to_column
        return lambda value: of_impl(to_column(value))

    def _to_column(self, keys: KeyRing | None) -> Callable[[Any], Any] | None:
        """Return the conversion of a value to its stored form; None if none is needed."""
        if keys is None:
            return None if type(self).as_plain is SealedType.as_plain else self.as_plain

        def sealed(value: Any) -> Any:
            if isinstance(value, Placed):
                if not value.value:
                    return self.as_plain(value.value)
                return self.as_stored(
                    keys.seal(self.encode(value.value), self.place(value.row_key))
                )
            if value:
                raise EncryptionError(
                    f"{self.table}.{self.column} was to be written without its row, "
                    "and so not sealed"
                )
            return self.as_plain(value)

        return sealed

    def column_expression(self, column: Any) -> Any:
        return with_row_key(self, column, *(column.table.c[name] for name in self.key))

    def result_processor(self, dialect: Dialect, coltype: Any) -> Any:
        keys = keys_of(dialect)
        if keys is not None:
            return lambda text: None if text is None else self.read(text, keys)
        of_impl = self.impl_instance.dialect_impl(dialect).result_processor(dialect, coltype)

        def plain(value: Any) -> Any:
            stored = value if of_impl is None or value is None else of_impl(value)
            if not isinstance(stored, str | bytes) or not stored.startswith(self.mark):
                return stored
            sealed = self.sealed_in(stored)
            if sealed is not None:
                raise KeysUnusable(
                    f"a text is sealed with the key {sealed[0]}; give this process its keys by "
                    "TIDEMILL_KEYS or TIDEMILL_KEYS_FILE"
                )
            return self.plain_in(stored)

        return plain

    def read(self, text: str, keys: KeyRing) -> Any:
        """Open the value of `key:value`, as `with_row_key` selects it."""
        key, _, rest = text.partition(":")
        key = key.replace("-", "").lower()
        try:
            return self._opened(rest, key, keys)
        except (Unopenable, KeysUnusable):
            passed_over = _passed_over.get()
            if passed_over is None:
                raise
            passed_over.append(self.place(key))
            return None

    def _opened(self, text: str, key: str, keys: KeyRing) -> Any:
        try:
            stored = self.from_text(text)
        except ValueError as error:
            raise Unopenable(f"what is in {self.place(key)} was changed: it is no JSON") from error
        return self.open(stored, key, keys)

    def open(self, stored: Any, key: str, keys: KeyRing) -> Any:
        sealed = self.sealed_in(stored)
        if sealed is None:
            return self.plain_in(stored)
        return self.decode(keys.open(*sealed, self.place(key)))


class SealedText(SealedType):
    impl = Text
    cache_ok = True

    def encode(self, value: str) -> bytes:
        return value.encode()

    def decode(self, plain: bytes) -> str:
        return plain.decode()

    def as_plain(self, value: Any) -> Any:
        return PLAIN + value if isinstance(value, str) and value.startswith(MARK) else value

    def plain_in(self, stored: Any) -> Any:
        return stored.removeprefix(PLAIN) if isinstance(stored, str) else stored


class SealedJSON(SealedType):
    """A JSON object or list; a stored string is a sealed one, never a user's."""

    impl = JSON
    impl_options = {"none_as_null": True}  # noqa: RUF012  (None is SQL's NULL, never JSON's)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(JSONB(none_as_null=True))
        return dialect.type_descriptor(JSON(none_as_null=True))

    def encode(self, value: Any) -> bytes:
        return _encode(value).encode()

    def decode(self, plain: bytes) -> Any:
        return json.loads(plain)

    def from_text(self, text: str) -> Any:
        # A sealed value is long and needs no parser.
        is_sealed = text.startswith(f'"{MARK}') and text.endswith('"') and "\\" not in text
        return text[1:-1] if is_sealed else json.loads(text)


class SealedBytes(SealedType):
    impl = LargeBinary
    mark = MARK.encode()
    cache_ok = True

    def encode(self, value: bytes) -> bytes:
        return value

    def decode(self, plain: bytes) -> bytes:
        return plain

    def as_stored(self, sealed: str) -> bytes:
        return sealed.encode()

    def as_plain(self, value: Any) -> Any:
        if isinstance(value, bytes) and value.startswith(MARK.encode()):
            return PLAIN.encode() + value
        return value

    def from_text(self, text: str) -> bytes:
        return bytes.fromhex(text)

    def sealed_in(self, stored: Any) -> tuple[str, str] | None:
        if not isinstance(stored, bytes) or not stored.startswith(MARK.encode()):
            return None
        return super().sealed_in(stored.decode("ascii", "replace"))

    def plain_in(self, stored: Any) -> Any:
        return stored.removeprefix(PLAIN.encode()) if isinstance(stored, bytes) else stored


class with_row_key(FunctionElement[Any]):
    """A column expression; with keys, `key:value` as one text, so that both come together."""

    name = "with_row_key"
    inherit_cache = True

    def __init__(self, type_: SealedType, column: Any, *keys: Any) -> None:
        # The bare column is compiled: the type's column expression would recurse.
        super().__init__(column, *keys)
        self.type = type_


@compiles(with_row_key)
def _with_row_key(element: with_row_key, compiler: SQLCompiler, **kw: Any) -> str:
    kw["within_columns_clause"] = False
    column, *keys = (compiler.process(each, **kw) for each in element.clauses)
    if keys_of(compiler.dialect) is None:
        return column
    is_postgresql = compiler.dialect.name == "postgresql"
    of_row = [
        _hex(text, is_postgresql)
        if isinstance(clause.type, LargeBinary)
        else f"CAST({text} AS VARCHAR)"
        for text, clause in zip(keys, list(element.clauses)[1:], strict=True)
    ]
    value = _hex(column, is_postgresql) if isinstance(element.type, SealedBytes) else column
    if is_postgresql and value is column:
        value = f"CAST({column} AS TEXT)"
    slash = " || '/' || "
    return f"({slash.join(of_row)} || ':' || {value})"


def _hex(column: str, is_postgresql: bool) -> str:
    return f"encode({column}, 'hex')" if is_postgresql else f"hex({column})"


def seal_inserts(engine: Engine, keys: KeyRing) -> None:
    """Seal everything that is inserted through this engine with these keys."""
    dialect: Any = engine.dialect
    dialect.tidemill_keys = keys

    @event.listens_for(engine, "before_execute", retval=True)
    def place(
        connection: object, statement: Any, rows: Any, row: Any, options: object
    ) -> tuple[Any, Any, Any]:
        if not isinstance(statement, Insert):
            return statement, rows, row
        types = {
            column.key: column.type
            for column in statement.table.c
            if isinstance(column.type, SealedType)
        }
        if not types:
            return statement, rows, row
        return (
            statement,
            [_placed(each, types) for each in rows],
            _placed(row, types) if row else row,
        )


def _placed(row: Mapping[str, Any], types: Mapping[str, SealedType]) -> dict[str, Any]:
    placed = dict(row)
    for name, type_ in types.items():
        if name in placed and placed[name] is not None:
            placed[name] = Placed(placed[name], row_key(placed[key] for key in type_.key))
    return placed
