"""Which source reads a path: a folder, or a file by its suffix."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from cli.errors import SourceUnusable
from cli.sources.csv import CsvSource
from cli.sources.folder import FolderSource
from cli.sources.jsonl import JsonlSource
from cli.sources.parquet import ParquetSource
from cli.sources.source import Source

READERS: Mapping[str, Callable[[Path], Source]] = {
    ".jsonl": JsonlSource,
    ".ndjson": JsonlSource,
    ".csv": CsvSource,
    ".tsv": CsvSource,
    ".parquet": ParquetSource,
}


def looks_like_source(text: str) -> bool:
    """Whether a text on the command line is clearly meant as a source.

    A file of a known kind is; a folder only when it is written with a slash,
    for the name of a folder may well be a word to generate from.
    """
    if "\x00" in text:
        return False
    try:
        path = Path(text)
        if path.is_dir():
            return os.sep in text
        return path.suffix.lower() in READERS and path.is_file()
    except OSError:  # too long for a path, for one
        return False


def open_source(path: Path) -> Source:
    """The source at a path, `-` being JSON lines on standard input; reads nothing yet.

    Raises SourceUnusable when there is none.
    """
    if str(path) == "-":
        return JsonlSource(path)
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise SourceUnusable(f"there is no file or folder {path}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise SourceUnusable(
            f"{path} is none of the known kinds: {', '.join(READERS)}, or a folder of text files"
        )
    return reader(path)
