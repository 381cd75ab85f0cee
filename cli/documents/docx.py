"""DOCX: converts a Word document to Markdown: headings, lists, tables, footnotes."""

import io
import zipfile
from xml.parsers.expat import ExpatError

from cli.documents.archive import Archive
from cli.documents.document import Document, UnreadableDocument
from cli.documents.extra import require
from cli.documents.markup import markdown_of
from cli.output.terminal import plural

COMPOUND_FILE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # what Office wrote before, and encrypts into
ENCRYPTED_STREAM = "EncryptedPackage".encode("utf-16-le")
STYLES = """
p[style-name='Title'] => h1:fresh
p[style-name='Subtitle'] => p:fresh
"""


def read(content: bytes) -> Document:
    mammoth = require("mammoth", ".docx")
    if content.startswith(COMPOUND_FILE):
        if ENCRYPTED_STREAM in content:
            fault = "is encrypted and opens only with its password; save it without one"
            raise UnreadableDocument("encrypted", fault)
        raise UnreadableDocument(
            "broken_file", "is a document of old Word (.doc); save it as .docx"
        )
    num_pictures = 0

    def count(image: object) -> list[object]:
        nonlocal num_pictures
        num_pictures += 1
        return []

    with Archive(content, "DOCX") as archive:
        archive.require("word/document.xml", "[Content_Types].xml")
        try:
            html = mammoth.convert_to_html(
                io.BytesIO(content), style_map=STYLES, convert_image=count
            ).value
        except RecursionError:
            raise UnreadableDocument("broken_file", "is nested too deeply to be read") from None
        except (zipfile.BadZipFile, ExpatError, OSError, KeyError, ValueError, AttributeError):
            # mammoth has no errors of its own for what does not fit together.
            raise UnreadableDocument("broken_file", "is no DOCX that can be read") from None
    text = markdown_of(html)
    if not text:
        pictures = f", only {plural(num_pictures, 'picture')}" if num_pictures else ""
        raise UnreadableDocument("no_text", f"holds no text{pictures}")
    return Document(text, plural(num_pictures, "picture") if num_pictures else None)
