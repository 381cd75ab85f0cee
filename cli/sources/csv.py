"""CSV: the header row names the fields, an empty cell leaves its field out."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli.errors import SourceUnusable
from cli.sources.measured import MeasuredFile
from cli.sources.source import BadRow, CheckColumns, Row

MAX_CELL_CHARACTERS = 64 * 2**20
# Their cells may hold JSON; everything else is a text, or a number that reads like one.
JSON_FIELDS = frozenset({"messages", "metadata", "stop"})


class CsvSource:
    """A CSV file in UTF-8, its cells separated by commas, semicolons or tabs."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._file: MeasuredFile | None = None

    @property
    def fraction(self) -> float | None:
        return self._file.fraction if self._file is not None else None

    def rows(self, check_columns: CheckColumns) -> Iterator[Row | BadRow]:
        csv.field_size_limit(MAX_CELL_CHARACTERS)
        self._file = MeasuredFile(self._path)
        # Bytes that are not UTF-8 become lone surrogates, which the contract
        # refuses: so they cost their own row and not the rest of the file.
        with io.TextIOWrapper(
            io.BufferedReader(self._file, 2**20),
            encoding="utf-8-sig",
            errors="surrogateescape",
            newline="",
        ) as text:
            first_line = text.readline(MAX_CELL_CHARACTERS)
            if not first_line.strip():
                raise SourceUnusable(
                    f"{self.name} begins without a header row; its first line must name the fields"
                )
            delimiter = max(",;\t", key=first_line.count)
            header = [name.strip() for name in next(csv.reader([first_line], delimiter=delimiter))]
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                raise SourceUnusable(f"{self.name} has the column {twice[0]!r} twice; rename one")
            check_columns(header)
            yield from _rows(csv.reader(text, delimiter=delimiter), header)


def _rows(reader: Any, header: list[str]) -> Iterator[Row | BadRow]:
    while True:
        number = reader.line_num + 2  # the header is line 1
        place = f"line {number}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(number, place, f"is not valid CSV: {error}")
            continue
        if not cells:
            continue
        if len(cells) != len(header):
            fault = f"has {len(cells)} cells where the header has {len(header)}"
            yield BadRow(number, place, fault)
            continue
        try:
            fields = {
                name: _value(name, cell) for name, cell in zip(header, cells, strict=True) if cell
            }
        except ValueError as error:
            yield BadRow(number, place, str(error))
            continue
        yield Row(number, place, fields)


def _value(name: str, cell: str) -> Any:
    if name in JSON_FIELDS and cell.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            raise ValueError(f"{name}: is not valid JSON") from None
    return cell
