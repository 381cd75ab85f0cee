"""Parquet: the columns are the fields; NULL leaves its field out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli.errors import SourceEmpty, SourceUnusable
from cli.ingest.source import BadRow, CheckColumns, Row, typed_fields

ROWS_AT_ONCE = 256


class ParquetSource:
    """A Parquet file; a column of structs or of a map may hold metadata."""

    exact_types = False  # a column of whole numbers with gaps is of floats

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._num_rows = 0
        self._num_read = 0

    @property
    def fraction(self) -> float | None:
        return self._num_read / self._num_rows if self._num_rows else None

    def rows(self, check_columns: CheckColumns) -> Iterator[Row | BadRow]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self._path, pre_buffer=False) as file:
                self._num_rows, self._num_read = file.metadata.num_rows, 0
                check_columns(file.schema_arrow.names)
                for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, use_threads=False):
                    for fields in _fields(batch):
                        self._num_read += 1
                        position, place = self._num_read, f"row {self._num_read}"
                        if isinstance(fields, str):
                            yield BadRow(position, place, fields)
                        else:
                            yield Row(position, place, typed_fields(_plain(fields)))
        except pa.ArrowInvalid as error:
            reason = str(error).splitlines()[0]
            kind = SourceUnusable if self._path.stat().st_size else SourceEmpty
            raise kind(f"{self.name} is not a Parquet file: {reason}") from error
        except OSError as error:
            reason = error.strerror or str(error).splitlines()[0]
            raise SourceUnusable(f"{self.name} cannot be read: {reason}") from error


def _fields(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The fields of each row, or the row's fault."""
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
        return
    except (KeyError, ValueError, OverflowError):
        pass  # one of them; which?
    for number in range(batch.num_rows):
        try:
            [fields] = batch.slice(number, 1).to_pylist(maps_as_pydicts="strict")
        except UnicodeDecodeError:
            yield "holds a text that is not UTF-8"
        except KeyError:
            yield "holds a map with the same key twice"
        except (ValueError, OverflowError) as error:
            yield f"holds a value that cannot be read ({type(error).__name__})"
        else:
            yield fields


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Drop keys without a value: a struct column has every key in every row."""
    return {
        name: {key: value for key, value in column.items() if value is not None}
        if isinstance(column, dict)
        else column
        for name, column in fields.items()
    }
