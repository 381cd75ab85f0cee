"""Finds the source at a path: a folder, or a file by its suffix."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cli.documents import DOCUMENT_SUFFIXES
from cli.documents.plain import codec_of
from cli.errors import SourceUnusable
from cli.ingest.formats.csv import CsvSource
from cli.ingest.formats.folder import DocumentSource, FolderSource
from cli.ingest.formats.jsonl import JsonlSource
from cli.ingest.formats.parquet import ParquetSource
from cli.ingest.source import Source

TEXT_READERS: Mapping[str, Callable[[Path, str | None], Source]] = {
    ".jsonl": JsonlSource,
    ".ndjson": JsonlSource,
    ".csv": CsvSource,
    ".tsv": CsvSource,
}
READERS = (*TEXT_READERS, ".parquet")


def looks_like_source(text: str) -> bool:
    """Whether a command-line argument is plainly meant as a source.

    A single word with the suffix of a known kind is, whether the file exists or not, and so is an
    existing file. A word without suffix or slash is ambiguous: it may name a file, or be a text.
    """
    if "\x00" in text:
        return False
    try:
        path = Path(text)
        if path.is_dir():
            return os.sep in text
        if path.suffix.lower() in READERS and len(text.split()) == 1:
            return True
        return bool(path.suffix or os.sep in text) and path.is_file()
    except OSError:  # too long for a path, for one
        return False


def open_source(path: Path, encoding: str | None = None) -> Source:
    """The source at a path, which is not yet read; `-` is JSON lines on standard input.

    Raises SourceUnusable if there is none.

    encoding: of texts that name none and are not in UTF-8
    """
    encoding = None if encoding is None else codec_named(encoding)
    if str(path) == "-":
        return JsonlSource(path, encoding)
    if path.is_dir():
        return FolderSource(path, encoding)
    if not path.exists():
        raise SourceUnusable(f"there is no file or folder {path}")
    if path.suffix.lower() in DOCUMENT_SUFFIXES:
        return DocumentSource(path, encoding)
    if path.suffix.lower() == ".parquet":
        if encoding is not None:
            raise SourceUnusable(f"{path} is Parquet, whose texts are UTF-8; name no encoding")
        return ParquetSource(path)
    reader = TEXT_READERS.get(path.suffix.lower())
    if reader is None and path.suffix.lower() == ".gz":
        raise SourceUnusable(
            f"{path} is compressed; unpack it, or if it is JSON lines: "
            f"`gunzip -c {path} | tidemill submit TASK --file -`"
        )
    if reader is None:
        raise SourceUnusable(
            f"{path} is none of the known kinds: {', '.join(READERS)} hold rows, "
            f"{', '.join(DOCUMENT_SUFFIXES)} are documents, and a folder holds documents; "
            f"`tidemill submit TASK - < {shlex.quote(str(path))}` submits what is in it as one text"
        )
    return reader(path, encoding)


def codec_named(encoding: str) -> str:
    """Python's name of an encoding; raises SourceUnusable if there is no such encoding."""
    if (codec := codec_of(encoding)) is None:
        raise SourceUnusable(
            f"there is no encoding {encoding!r}; windows-1252, shift_jis and koi8-r are some"
        )
    return codec


def open_sources(paths: Sequence[Path], encoding: str | None = None) -> list[Source]:
    """The sources at several paths, whose documents get distinct names.

    The names are paths from the nearest common folder: for jan/ and feb/ they are `jan/1.txt` and
    `feb/1.txt`; for reports/*.txt they are the same as for reports/.
    """
    sources = [open_source(path, encoding) for path in paths]
    documents = [each for each in sources if isinstance(each, FolderSource | DocumentSource)]
    if len(documents) > 1:
        places = [
            source.path.absolute().parent
            if isinstance(source, DocumentSource)
            else source.path.absolute()
            for source in documents
        ]
        base = Path(os.path.commonpath([os.path.normpath(place) for place in places]))
        for source in documents:
            source.base = base
    return sources


def emptiness_of(name: str) -> str:
    """A sentence that says that a source is empty."""
    if Path(name).is_dir():
        return f"{name} has no rows: the folder has no files in it, hidden ones aside"
    return f"{name} has no rows"
