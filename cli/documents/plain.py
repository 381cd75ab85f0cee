"""Plain text, Markdown and subtitles: as they are, in UTF-8, or in UTF-16 or
UTF-32 with its mark."""

import codecs

from cli.documents.document import Document, UnreadableDocument

BINARY = ((b"%PDF-", "a PDF"), (b"PK\x03\x04", "a ZIP archive, as .docx and .epub files are"))


def read(content: bytes) -> Document:
    return Document(decoded(content))


def decoded(content: bytes, encoding: str | None = None) -> str:
    """The text of a file's bytes; encoding: what it says of itself, where it has no mark.

    Raises UnreadableDocument where it is none.
    """
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "utf-32"
    elif content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif content.startswith(codecs.BOM_UTF8) or encoding is None:
        encoding = "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeError as error:
        raise UnreadableDocument("not_text", _fault(content, encoding, error)) from None


def _fault(content: bytes, encoding: str, error: UnicodeError) -> str:
    fault = f"is not {'UTF-8' if encoding == 'utf-8-sig' else encoding.upper()} text"
    if isinstance(error, UnicodeDecodeError):
        fault += f" (byte {content[error.start]:#04x} at {error.start})"
    kind = next((kind for mark, kind in BINARY if content.startswith(mark)), None)
    return f"{fault}; it is {kind}: give it that suffix" if kind else fault
