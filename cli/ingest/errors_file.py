"""The file of `--errors`: a JSON line for each row that was left out.

A document of which a part has no text also gets a line, with the code `parts_without_text`.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from cli.errors import CommandError
from cli.ingest.row_parsing import Refusal, SourcePart


class ErrorsFile:
    """Writes each refused row at once, so that the file is valid whenever the command ends.

    A line has source, place (`line 7`), position, code and problem, but never a text of the row. An
    empty file means that no row was refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def require_apart_from(self, parts: Iterable[SourcePart]) -> None:
        """Raise CommandError if it would overwrite a source."""
        for part in parts:
            source = Path(part.source.name)
            if source.exists() and self.path.exists() and source.samefile(self.path):
                raise CommandError(f"--errors {self.path} is the source itself; name another file")
            if source.is_dir() and self.path.resolve().is_relative_to(source.resolve()):
                raise CommandError(
                    f"--errors {self.path} lies in the folder that is read; name a file elsewhere"
                )

    def open(self) -> None:
        """Truncate the file; raises CommandError if that fails."""
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
    """The text with characters that UTF-8 lacks replaced: a file's name may have some."""
    return text.encode(errors="replace").decode()
