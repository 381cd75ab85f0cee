"""Readers by suffix; a file with any other suffix is read as plain text."""

from collections.abc import Callable, Mapping
from pathlib import Path

from cli.documents import docx, epub, markup, pdf, plain
from cli.documents.document import Document, UnreadableDocument

MAX_FILE_BYTES = 64 * 2**20

PAGES = (".htm", ".html", ".xhtml")
READERS: Mapping[str, Callable[[bytes], Document]] = {
    ".docx": docx.read,
    ".pdf": pdf.read,
    ".epub": epub.read,
}
# A file by itself is taken for a document by these; in a folder, every other one is a text, too.
DOCUMENT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".srt", ".vtt", *PAGES, *READERS)


def read_document(path: Path, encoding: str | None = None) -> Document:
    """The text of a file; raises UnreadableDocument if it has none that can be read.

    encoding: of texts and pages that name none and are not in UTF-8
    """
    try:
        num_bytes = path.stat().st_size
        if num_bytes > MAX_FILE_BYTES:
            fault = f"has {num_bytes:,} bytes; a document may have {MAX_FILE_BYTES:,}: split it"
            raise UnreadableDocument("file_too_large", fault)
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableDocument("unreadable_row", f"cannot be read: {error.strerror}") from error
    suffix = path.suffix.lower()
    if suffix in READERS:
        return READERS[suffix](content)
    read = markup.read if suffix in PAGES else plain.read
    return read(content, encoding)
