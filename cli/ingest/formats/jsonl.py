"""JSON lines: one object a line; its keys are the fields of a job."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from cli.documents.plain import encoding_of, shown
from cli.errors import SourceUnusable
from cli.ingest.progress_file import MeasuredFile
from cli.ingest.source import BadRow, CheckColumns, Row

# More than any job may hold; a file without line breaks must not fill the memory.
MAX_LINE_BYTES = 64 * 2**20
BOM = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
GZIP = b"\x1f\x8b"


class JsonlSource:
    """A file of JSON lines; `-` is standard input."""

    exact_types = True

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        self.name = "standard input" if str(path) == "-" else str(path)
        self._path = path
        self._encoding = encoding
        self._file: MeasuredFile | None = None

    @property
    def fraction(self) -> float | None:
        return self._file.fraction if self._file is not None else None

    def rows(self, check_columns: CheckColumns) -> Iterator[Row | BadRow]:
        with self._opened() as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                place = f"line {number}"
                if len(line) > MAX_LINE_BYTES:
                    _skip_line(file)
                    fault = f"is longer than {MAX_LINE_BYTES:,} bytes; split the document"
                    yield BadRow(number, place, fault)
                    continue
                if number == 1:
                    self._require_utf8(line)
                    line = line.removeprefix(BOM)
                if not line.strip():
                    continue
                fields = parse_line(line, self._encoding)
                if isinstance(fields, str):
                    yield BadRow(number, place, fields)
                else:
                    yield Row(number, place, fields)

    def _require_utf8(self, line: bytes) -> None:
        """Raise SourceUnusable if no line can be JSON, instead of refusing each."""
        if line.startswith(UTF_16) or line[:4].count(b"\0") > 1:
            raise SourceUnusable(f"{self.name} is UTF-16, by its look; save it as UTF-8")
        if line.startswith(GZIP):
            raise SourceUnusable(
                f"{self.name} is compressed; "
                "`gunzip -c FILE | tidemill submit TASK --file -` reads it"
            )

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        if str(self._path) == "-":
            yield sys.stdin.buffer
            return
        self._file = MeasuredFile(self._path)
        with io.BufferedReader(self._file, 2**20) as buffered:
            yield cast(BinaryIO, buffered)


def parse_line(line: bytes, otherwise: str | None = None) -> dict[str, Any] | str:
    """The object on a line, or the line's fault.

    otherwise: the encoding of a line that is not in UTF-8
    """
    encoding = encoding_of(line, otherwise=otherwise)
    try:
        value = json.loads(line.decode(encoding), object_pairs_hook=_object)
    except _NameTwice:
        return "has a name twice in one object; which of them is meant?"
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        return (
            f"is not {shown(encoding)} (byte {byte:#04x} at {error.start}); save the file as "
            "UTF-8, or name its encoding"
        )
    except json.JSONDecodeError as error:
        return f"is not valid JSON: {error.msg} (column {error.colno})"
    except ValueError:
        return "is not valid JSON: a number has too many digits"
    except RecursionError:
        return "is not valid JSON: it is nested too deeply"
    if not isinstance(value, dict):
        return 'is not a JSON object; each line must be one, such as {"text": "..."}'
    return value


class _NameTwice(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; raises _NameTwice for a repeated key."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise _NameTwice
    return fields


def _skip_line(file: BinaryIO) -> None:
    while piece := file.readline(2**20):
        if piece.endswith(b"\n"):
            return
