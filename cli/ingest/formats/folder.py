"""Folders of documents, and single documents: each file is one text, its name the custom id."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from cli.documents import UnreadableDocument, read_document
from cli.errors import SourceUnusable
from cli.ingest.source import BadRow, CheckColumns, Row

HIDDEN = (".", "~$")  # the latter: what Word keeps beside a document that is open
MAX_METADATA_CHARACTERS = 512


class FolderSource:
    """The files in a folder and its subfolders, in order of their names.

    Hidden files and linked folders are left out. A file's name is its path from `base`, by default
    the folder itself.
    """

    exact_types = True

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        self.name = str(path)
        self.path = path
        self.base = path
        self._encoding = encoding
        self._num_files = 0
        self._num_read = 0

    @property
    def fraction(self) -> float | None:
        return self._num_read / self._num_files if self._num_files else None

    def rows(self, check_columns: CheckColumns) -> Iterator[Row | BadRow]:
        files = sorted(_files(self.path), key=lambda each: each[0].parts)
        self._num_files, self._num_read = len(files), 0
        for position, (path, error) in enumerate(files, start=1):
            self._num_read = position
            if error is None:
                yield row_of(position, path, self.base, self._encoding)
            elif path == self.path:
                raise SourceUnusable(f"{self.name} cannot be read: {error.strerror}") from error
            else:
                kind = "folder" if os.path.isdir(path) else "file"
                fault = f"cannot be read: {error.strerror}"
                yield BadRow(position, f"{kind} {_shown(_name(path, self.base))}", fault)


class DocumentSource:
    """One document. Its name is its path from `base`, by default the file's name alone."""

    exact_types = True

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        self.name = str(path)
        self.path = path
        self.base = path.parent
        self._encoding = encoding
        self.fraction: float | None = None

    def rows(self, check_columns: CheckColumns) -> Iterator[Row | BadRow]:
        yield row_of(1, self.path, self.base, self._encoding)
        self.fraction = 1.0


def row_of(position: int, path: Path, base: Path, encoding: str | None) -> Row | BadRow:
    """The row of a file, or the reason that it has none."""
    name = _name(path, base)
    place = f"file {_shown(name)}"
    if _shown(name) != name:
        fault = "has a name that is not UTF-8, which no job can be called by; rename it"
        return BadRow(position, place, fault)
    try:
        document = read_document(path, encoding)
    except UnreadableDocument as error:
        return BadRow(position, place, error.fault, error.code)
    fields = {"text": document.text, "custom_id": name}
    if document.without_text is not None:
        # Kept with the job, so that its result can be seen to be of a part.
        fields["metadata.without_text"] = document.without_text[:MAX_METADATA_CHARACTERS]
    return Row(position, place, fields, document.without_text)


def _files(folder: Path) -> Iterator[tuple[Path, OSError | None]]:
    """Every file, and each entry that cannot be read, with the error."""
    folders = [folder]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(HIDDEN):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(folder / entry.name)
                    # os.path's: a link to itself must not end the reading of the others.
                    elif os.path.isfile(entry):
                        yield folder / entry.name, None
                    elif not os.path.isdir(entry):
                        yield folder / entry.name, OSError(errno.EINVAL, _unreadable(entry))
        except OSError as error:
            yield folder, error


def _unreadable(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink() and not os.path.exists(entry):
        return "it is a link that leads nowhere"
    return "it is neither a file nor a folder"


def _name(path: Path, base: Path) -> str:
    return PurePath(os.path.relpath(path, base)).as_posix()


def _shown(name: str) -> str:
    return os.fsencode(name).decode(errors="replace")
