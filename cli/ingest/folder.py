"""A folder of text files: each is one text, and its name the custom id."""

import os
from collections.abc import Iterator
from pathlib import Path

from cli.errors import SourceUnusable
from cli.ingest.source import BadRow, CheckColumns, Row

MAX_FILE_BYTES = 64 * 2**20  # more than any job may hold


class FolderSource:
    """The files directly in a folder, in the order of their names; hidden ones are left out."""

    exact_types = True

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._num_files = 0
        self._num_read = 0

    @property
    def fraction(self) -> float | None:
        return self._num_read / self._num_files if self._num_files else None

    def rows(self, check_columns: CheckColumns) -> Iterator[Row | BadRow]:
        try:
            with os.scandir(self._path) as entries:
                names = sorted(
                    entry.name
                    for entry in entries
                    if entry.is_file() and not entry.name.startswith(".")
                )
        except OSError as error:
            raise SourceUnusable(f"{self.name} cannot be read: {error.strerror}") from error
        self._num_files, self._num_read = len(names), 0
        for position, name in enumerate(names, start=1):
            self._num_read = position
            yield self._row(position, name)

    def _row(self, position: int, name: str) -> Row | BadRow:
        place = f"file {os.fsencode(name).decode(errors='replace')}"
        path = self._path / name
        try:
            num_bytes = path.stat().st_size
            if num_bytes > MAX_FILE_BYTES:
                fault = f"has {num_bytes:,} bytes, more than any job may; split the document"
                return BadRow(position, place, fault)
            text = path.read_bytes().decode("utf-8-sig")
        except OSError as error:
            return BadRow(position, place, f"cannot be read: {error.strerror}")
        except UnicodeDecodeError as error:
            fault = f"is not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start})"
            return BadRow(position, place, fault)
        return Row(position, place, {"text": text, "custom_id": name})
