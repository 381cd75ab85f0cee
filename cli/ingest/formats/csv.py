"""CSV: the header row names the fields; an empty cell leaves its field out."""

import csv
import io
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from cli.documents.plain import encoding_of, shown
from cli.errors import SourceEmpty, SourceUnusable
from cli.ingest.progress_file import MeasuredFile
from cli.ingest.source import BadRow, CheckColumns, Row
from cli.output.terminal import plural

MAX_CELL_CHARACTERS = 64 * 2**20
# Their cells may hold JSON; everything else is a text, or a number that reads like one.
JSON_FIELDS = frozenset({"messages", "metadata", "stop", "glossary"})


class CsvSource:
    """A CSV file with commas, semicolons or tabs between its cells.

    encoding: of a file that has no byte order mark and is not in UTF-8
    """

    exact_types = False  # all is text

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        self.name = str(path)
        self._path = path
        self._encoding = encoding
        self._file: MeasuredFile | None = None

    @property
    def fraction(self) -> float | None:
        return self._file.fraction if self._file is not None else None

    def rows(self, check_columns: CheckColumns) -> Iterator[Row | BadRow]:
        csv.field_size_limit(MAX_CELL_CHARACTERS)
        self._file = MeasuredFile(self._path)
        buffered = io.BufferedReader(self._file, 2**20)
        encoding = encoding_of(buffered.peek(), otherwise=self._encoding)
        try:
            yield from self._rows(buffered, encoding, check_columns)
        except UnicodeDecodeError:  # of two bytes a character, one is missing
            raise SourceUnusable(f"{self.name} is not {shown(encoding)} to its end") from None

    def _rows(
        self, file: "io.BufferedReader[MeasuredFile]", encoding: str, check_columns: CheckColumns
    ) -> Iterator[Row | BadRow]:
        # Bytes that are no text become lone surrogates, which `_value` refuses:
        # so they cost their own row and not the rest of the file.
        with io.TextIOWrapper(
            file, encoding=encoding, errors="surrogateescape", newline=""
        ) as text:
            first_line = text.readline(MAX_CELL_CHARACTERS)
            if not first_line.strip():
                nothing = not any(line.strip() for line in text)
                raise (SourceEmpty if nothing else SourceUnusable)(
                    f"{self.name} begins without a header row; its first line must name the fields"
                )
            _require_text(self.name, first_line, encoding)
            delimiter = max(",;\t", key=first_line.count)
            header = [name.strip() for name in next(csv.reader([first_line], delimiter=delimiter))]
            twice = sorted({name for name in header if header.count(name) > 1})
            if twice:
                raise SourceUnusable(f"{self.name} has the column {twice[0]!r} twice; rename one")
            check_columns(header)
            yield from _rows(_Lines(text), header, delimiter, encoding)


class _Lines:
    """The lines after the header, of which those of the present record can be read again."""

    def __init__(self, text: Iterator[str]) -> None:
        self._text = text
        self._again: deque[str] = deque()
        self._record: list[str] = []
        self._next_number = 2  # the header is line 1

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._text)
        self._record.append(line)
        return line

    def begin_record(self) -> int:
        """The number of the next line."""
        self._next_number += len(self._record)
        self._record.clear()
        return self._next_number

    def give_up_on_first(self) -> int:
        """Put back all lines of the record but its first; returns their number."""
        other_lines = self._record[1:]
        self._again.extendleft(reversed(other_lines))
        del self._record[1:]
        return len(other_lines)


def _rows(
    lines: _Lines, header: list[str], delimiter: str, encoding: str
) -> Iterator[Row | BadRow]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        number = lines.begin_record()
        place = f"line {number}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # A quote that nobody closes takes the lines after it for its own,
            # up to the next quote or the end. They are rows, and good ones perhaps.
            if lines.give_up_on_first():
                fault = "is not valid CSV: it opens a quote and does not close it"
            else:
                fault = f"is not valid CSV: {error}"
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            yield BadRow(number, place, fault)
            continue
        if not cells:
            continue
        if len(cells) != len(header):
            fault = f"has {plural(len(cells), 'cell')} where the header has {len(header)}"
            yield BadRow(number, place, fault)
            continue
        try:
            fields = {
                name: _value(name, cell, encoding)
                for name, cell in zip(header, cells, strict=True)
                if cell
            }
        except ValueError as error:
            yield BadRow(number, place, str(error))
            continue
        yield Row(number, place, fields)


def _require_text(name: str, header: str, encoding: str) -> None:
    """Raise SourceUnusable if the first line cannot be decoded."""
    fault = "is UTF-16, by its look" if "\x00" in header else f"is not {shown(encoding)} text"
    try:
        header.encode()
    except UnicodeEncodeError:
        pass
    else:
        if "\x00" not in header:
            return
    raise SourceUnusable(f"{name} {fault}; save it as UTF-8, or name its encoding")


def _value(name: str, cell: str, encoding: str) -> Any:
    try:
        cell.encode()
    except UnicodeEncodeError as error:
        byte = ord(error.object[error.start]) - 0xDC00  # as `surrogateescape` keeps it
        fault = (
            f"is not {shown(encoding)} in {name} (byte {byte:#04x} at {error.start}); save the "
            "file as UTF-8, or name its encoding"
        )
        raise ValueError(fault) from None
    if name in JSON_FIELDS and cell.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            raise ValueError(f"is not valid JSON in {name}") from None
    return cell
