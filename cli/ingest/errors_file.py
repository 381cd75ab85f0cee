"""The file of `--errors`: each row that was left out, as a line of JSON.

So is each document of which a part gave no text, by the code `parts_without_text`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from cli.errors import CommandError
from cli.ingest.row_parsing import Refusal, SourcePart


class ErrorsFile:
    """Written as rows are refused, so that what is there is whole whenever it ends.

    A line has source, place (`line 7`), position, code and problem, and nothing
    of what the row's texts say. A file without lines: there is nothing to complain of.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def require_apart_from(self, parts: Iterable[SourcePart]) -> None:
        """Raise CommandError where a source would be overwritten."""
        for part in parts:
            source = Path(part.source.name)
            if source.exists() and self.path.exists() and source.samefile(self.path):
                raise CommandError(f"--errors {self.path} is the source itself; name another file")
            if source.is_dir() and self.path.resolve().is_relative_to(source.resolve()):
                raise CommandError(
                    f"--errors {self.path} lies in the folder that is read; name a file elsewhere"
                )

    def open(self) -> None:
        """Empty it; raises CommandError where that cannot be."""
        try:
            self._file = self.path.open("w", encoding="utf-8", buffering=1)
        except OSError as error:
            raise CommandError(
                f"--errors {self.path} cannot be written: {error.strerror}"
            ) from error

    def write(self, refusal: Refusal) -> None:
        if self._file is not None:
            record = {
                "source": _printable(refusal.source),
                "place": _printable(refusal.place),
                "position": refusal.position,
                "code": refusal.code,
                "problem": _printable(refusal.problem),
            }
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _printable(text: str) -> str:
    """The same in characters that UTF-8 has: the name of a file may have others."""
    return text.encode(errors="replace").decode()
