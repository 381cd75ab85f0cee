"""Glossary files: terms and translations in CSV or JSON, for a contract's glossary."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from cli.documents import UnreadableDocument
from cli.documents.plain import decoded
from cli.errors import SourceUnusable
from cli.ingest.formats.suffixes import codec_named

HEADERS = (
    {"term", "source", "from", "source term", "original"},
    {"translation", "target", "to", "target term"},
)
DELIMITERS = ",;\t"


def read_glossary_file(path: Path, encoding: str | None = None) -> list[list[str | None]]:
    """The entries in order, repeated ones included: the contract refuses a clash.

    Raises SourceUnusable.

    encoding: of a file that has no byte order mark and is not in UTF-8
    """
    try:
        text = decoded(
            path.read_bytes(), otherwise=None if encoding is None else codec_named(encoding)
        )
    except UnreadableDocument as error:
        raise SourceUnusable(f"{path} {error.fault}") from None
    except OSError as error:
        raise SourceUnusable(f"{path} cannot be read: {error.strerror}") from error
    return _of_json(path, text) if path.suffix.lower() == ".json" else _of_csv(path, text)


def _of_json(path: Path, text: str) -> list[list[str | None]]:
    try:
        # Pairs, since an object would forget a term that is named twice.
        read: Any = json.loads(text, object_pairs_hook=lambda pairs: [list(each) for each in pairs])
    except ValueError as error:
        raise SourceUnusable(f"{path} is not valid JSON: {error}") from None
    if not isinstance(read, list) or not text.lstrip().startswith(("{", "[")):
        raise SourceUnusable(f"{path} must be a JSON object of term to translation")
    return read


def _of_csv(path: Path, text: str) -> list[list[str | None]]:
    first_line = text.split("\n", 1)[0]
    is_tsv = path.suffix.lower() == ".tsv"
    delimiter = "\t" if is_tsv else max(DELIMITERS, key=first_line.count)
    entries: list[list[str | None]] = []
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if len(cells) > 2 and any(cells[2:]):
                raise SourceUnusable(
                    f"{path}, line {rows.line_num} has {len(cells)} cells; a term and its "
                    "translation are two"
                )
            if not cells[0]:
                raise SourceUnusable(f"{path}, line {rows.line_num} has no term")
            if not entries and rows.line_num == 1 and _is_header(cells):
                continue
            entries.append([cells[0], (cells[1] if len(cells) > 1 else "") or None])
    except csv.Error as error:
        raise SourceUnusable(f"{path}, line {rows.line_num}: {error}") from None
    return entries


def _is_header(cells: list[str]) -> bool:
    names = [cell.casefold() for cell in cells[:2]]
    return all(name in header for name, header in zip(names, HEADERS, strict=False))
