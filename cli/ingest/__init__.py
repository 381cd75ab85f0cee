"""Sources of jobs: files, folders and queries, each read as a stream of rows."""

from cli.ingest.formats.suffixes import (
    codec_named,
    looks_like_source,
    open_source,
    open_sources,
)
from cli.ingest.source import BadRow, Row, Source

__all__ = [
    "BadRow",
    "Row",
    "Source",
    "codec_named",
    "looks_like_source",
    "open_source",
    "open_sources",
]
