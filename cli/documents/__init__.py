"""Documents: converts files of known kinds to plain text or Markdown."""

from cli.documents.document import Document, UnreadableDocument
from cli.documents.reading import DOCUMENT_SUFFIXES, MAX_FILE_BYTES, read_document

__all__ = [
    "DOCUMENT_SUFFIXES",
    "MAX_FILE_BYTES",
    "Document",
    "UnreadableDocument",
    "read_document",
]
