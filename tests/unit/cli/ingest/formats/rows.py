"""Rows and columns of a source, and files of them."""

from collections.abc import Sequence
from pathlib import Path

from cli.ingest import BadRow, Row, Source


def read(source: Source) -> list[Row | BadRow]:
    return list(source.rows(lambda columns: None))


def columns_of(source: Source) -> list[str]:
    columns_read: list[str] = []

    def keep(columns: Sequence[str]) -> None:
        columns_read.extend(columns)

    list(source.rows(keep))
    return columns_read


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path
