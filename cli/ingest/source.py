"""Source: rows that become jobs, read one at a time and never all at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

# Called with the names of the columns, once they are known and before any row.
CheckColumns = Callable[[Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Row:
    """The fields of one job, in the form of the source."""

    position: int  # from 1; of a line, a row or a file
    place: str  # where a person finds it: `line 7`
    fields: dict[str, Any]
    without_text: str | None = None  # what of a document gave none: `pages 3, 7 of 10`


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read, and the reason; later rows can still be read."""

    position: int
    place: str
    fault: str
    code: str = "unreadable_row"


class Source(Protocol):
    @property
    def name(self) -> str:
        """The name of the source in messages."""
        ...

    @property
    def fraction(self) -> float | None:
        """The share that has been read, 0 to 1; None if unknown."""
        ...

    def rows(self, check_columns: CheckColumns) -> Iterator[Row | BadRow]:
        """Every row, from the beginning at each call.

        A source with columns calls `check_columns` before it yields. Raises SourceUnusable if
        nothing more can be read, and SourceEmpty if it is empty.
        """
        ...


def typed_fields(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row with typed columns: NULL is left out, and ids become texts.

    A key is often a number in the source, but a text in a job.
    """
    return {
        name: _as_text(value) if name == "custom_id" or name.startswith("metadata.") else value
        for name, value in row.items()
        if value is not None
    }


def _as_text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value) if isinstance(value, int | float | UUID) else value
