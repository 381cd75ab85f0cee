"""Plain text, Markdown and subtitles: decoded and otherwise unchanged.

The encoding is UTF-8, UTF-16 or UTF-32 with a byte order mark, or a named one.
"""

import codecs

from cli.documents.document import Document, UnreadableDocument

# What begins so is no text, even where each of its bytes could be.
NO_TEXTS = (
    (b"%PDF-", "a PDF: give it that suffix"),
    (b"PK\x03\x04", "a ZIP archive, as .docx and .epub files are: give it that suffix"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of old Office: save it as .docx"),
    (b"{\\rtf", "RTF: save it as .docx"),
    (b"\x1f\x8b", "compressed: unpack it"),
)
MARKS = (  # the longest first, for UTF-32's begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
# As HTML's own rules have it, `iso-8859-1` and `ascii` mean windows-1252.
LATIN = frozenset({"iso8859-1", "ascii"})


def read(content: bytes, encoding: str | None = None) -> Document:
    """Read a text. encoding: of a text that is not in UTF-8"""
    return Document(decoded(content, otherwise=encoding))


def codec_of(name: str) -> str | None:
    """Python's name of a text encoding; None if there is no such encoding."""
    try:
        codec = codecs.lookup(name).name
        "".encode(codec)
    except (LookupError, UnicodeError):  # unknown, or a codec of something else than text
        return None
    return "cp1252" if codec in LATIN else codec


def encoding_of(content: bytes, named: str | None = None, otherwise: str | None = None) -> str:
    """The encoding of a text, judged by its beginning.

    named:     the encoding that the text itself names, if it has no byte order mark
    otherwise: the encoding of a text that names none and does not look like UTF-8
    """
    for mark, encoding in MARKS:
        if content.startswith(mark):
            return encoding
    if named is not None:
        return named
    return "utf-8" if otherwise is None or _looks_utf8(content) else otherwise


def _looks_utf8(content: bytes) -> bool:
    """Whether it is UTF-8 with characters beyond ASCII; pure ASCII may be another 7-bit encoding.

    The last character may be cut.
    """
    try:
        return not content.isascii() and bool(content.decode())
    except UnicodeDecodeError as error:
        return error.start >= len(content) - 3 and not content[: error.start].isascii()


def decoded(content: bytes, named: str | None = None, otherwise: str | None = None) -> str:
    """Decode a file's bytes by `encoding_of`; raises UnreadableDocument if that fails."""
    kind = next((kind for mark, kind in NO_TEXTS if content.startswith(mark)), None)
    if kind is not None:
        raise UnreadableDocument("not_text", f"is no text; it is {kind}")
    encoding = encoding_of(content, named, otherwise)
    try:
        return content.decode(encoding)
    except UnicodeError as error:
        at = (
            f" (byte {content[error.start]:#04x} at {error.start})"
            if isinstance(error, UnicodeDecodeError)
            else ""
        )
        fault = f"is not {shown(encoding)} text{at}; if it is a text, name its encoding"
        raise UnreadableDocument("not_text", fault) from None


def shown(encoding: str) -> str:
    return encoding.upper().removesuffix("-SIG")
