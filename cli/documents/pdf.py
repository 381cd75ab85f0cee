"""PDF: extracts the text of its pages, and finds those without text."""

from itertools import pairwise
from typing import Any

from cli.documents.document import Document, UnreadableDocument, pages_in_words
from cli.documents.extra import require

PASSWORD_NEEDED = 4  # FPDF_ERR_PASSWORD
SENTENCE_ENDS = (".", "!", "?", ":", "…", "。", "！", "？", "।", "۔", '"', "”", "»")


def read(content: bytes) -> Document:
    pdfium = require("pypdfium2", ".pdf")
    try:
        document = pdfium.PdfDocument(content)
    except pdfium.PdfiumError as error:
        if error.err_code == PASSWORD_NEEDED:
            fault = "is encrypted and opens only with its password; save it without one"
            raise UnreadableDocument("encrypted", fault) from None
        raise UnreadableDocument("broken_file", "is no PDF that can be read") from None
    with document:
        num_pages = len(document)
        pages = [_page_text(pdfium, document, index) for index in range(num_pages)]
    empty = [number for number, text in enumerate(pages, start=1) if not text]
    if len(empty) == num_pages:
        fault = (
            f"has no text on any of its {num_pages:,} pages: pictures of pages, perhaps, which "
            "must go through character recognition (OCR) first"
        )
        raise UnreadableDocument("no_text", fault if num_pages else "has no pages")
    without_text = pages_in_words(empty, num_pages) if empty else None
    return Document(_joined([page for page in pages if page]), without_text)


def _page_text(pdfium: Any, document: Any, index: int) -> str:
    try:
        page = document[index]
        textpage = page.get_textpage()
        text = str(textpage.get_text_bounded(errors="replace"))
        textpage.close()
        page.close()
    except pdfium.PdfiumError:  # this page is broken; the others need not be
        return ""
    # Where a word is broken at the end of a line, PDFium writes U+FFFE for its hyphen.
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufffe\n", "")
    text = "".join(each for each in text if each in "\n\t" or each >= " ").replace("\ufffe", "")
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def _joined(pages: list[str]) -> str:
    """The pages as one text; a paragraph that continues on the next page stays one."""
    pieces = pages[:1]
    for before, page in pairwise(pages):
        pieces += ["\n\n" if before.endswith(SENTENCE_ENDS) else "\n", page]
    return "".join(pieces)
