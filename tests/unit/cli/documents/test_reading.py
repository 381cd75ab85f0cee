"""Each kind of file gives its text; what gives none says which, and by a code why."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.documents import UnreadableDocument, read_document
from cli.documents.document import pages_in_words
from tests.samples.documents import archive, docx, epub, paragraph, pdf

Write = Callable[[str, bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return written


def code_of(path: Path) -> tuple[str, str]:
    with pytest.raises(UnreadableDocument) as refused:
        read_document(path)
    return refused.value.code, refused.value.fault


# --- text ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.md", "A.MD", "a.srt", "a.vtt", "a", "a.log"])
def test_plain_text_is_read_unchanged(write: Write, name: str) -> None:
    text = "# Größe\r\n\r\n- one\n\n1\n00:00:01,000 --> 00:00:02,000\nHi.\n"
    assert read_document(write(name, text.encode())).text == text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_the_mark_of_an_encoding_is_heeded_and_no_part_of_the_text(
    write: Write, encoding: str
) -> None:
    assert read_document(write("a.txt", "Größe".encode(encoding))).text == "Größe"


def test_bytes_that_are_no_text_are_refused(write: Write) -> None:
    fault = "is not UTF-8 text (byte 0xff at 2); if it is a text, name its encoding"
    assert code_of(write("a.txt", b"ab\xff")) == ("not_text", fault)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.txt", pdf(["x"]), "a PDF: give it that suffix"),
        ("a.html", b"%PDF-1.4 of ASCII alone", "a PDF: give it that suffix"),
        ("a.md", docx(paragraph("x")), "a ZIP archive, as .docx and .epub files are"),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of old Office"),
        ("a.rtf", rb"{\rtf1\ansi A letter.}", "RTF: save it as .docx"),
        ("a.txt.gz", b"\x1f\x8b\x08", "compressed: unpack it"),
    ],
)
def test_a_binary_file_of_any_name_is_refused_with_its_kind(
    write: Write, name: str, content: bytes, kind: str
) -> None:
    code, fault = code_of(write(name, content))
    assert code == "not_text"
    assert f"is no text; it is {kind}" in fault


LETTER = "“Größe”, naïve café: 5 €"


@pytest.mark.parametrize(
    ("name", "content", "encoding", "text"),
    [
        ("a.txt", LETTER.encode("cp1252"), "cp1252", LETTER),
        ("a.md", b"caf\xe9", "cp1252", "café"),
        ("a.txt", LETTER.encode(), "cp1252", LETTER),  # in UTF-8 all the same
        ("a.txt", LETTER.encode("utf-16"), "cp1252", LETTER),  # by its mark
        ("a.txt", "日本語".encode("iso2022_jp"), "iso2022_jp", "日本語"),  # of seven bits
        ("a.srt", "Größe".encode("utf-16-le"), "utf-16-le", "Größe"),
        ("a.html", b"<p>caf\xe9", "cp1252", "café"),
        ("a.html", "<meta charset=shift_jis><p>日本".encode("shift_jis"), "cp1252", "日本"),
        ("a.pdf", pdf(["Printed."]), "cp1252", "Printed."),
    ],
)
def test_a_text_in_no_unicode_is_read_in_the_named_encoding(
    write: Write, name: str, content: bytes, encoding: str, text: str
) -> None:
    assert read_document(write(name, content), encoding).text == text


def test_bytes_that_the_named_encoding_does_not_have_are_refused(write: Write) -> None:
    with pytest.raises(UnreadableDocument) as refused:
        read_document(write("a.txt", b"ab\x81"), "cp1252")
    assert refused.value.fault.startswith("is not CP1252 text (byte 0x81 at 2)")


# --- PDF -------------------------------------------------------------------------------------


def test_the_pages_of_a_pdf_are_one_text(write: Write) -> None:
    pages = ["The mill was busy.\nIt ended at dusk.", "A sentence that goes", "on over the page."]
    document = read_document(write("a.pdf", pdf(pages)))

    assert document.text == (
        "The mill was busy.\nIt ended at dusk.\n\nA sentence that goes\non over the page."
    )
    assert document.without_text is None


def test_pages_without_text_are_named(write: Write) -> None:
    document = read_document(write("a.PDF", pdf(["One.", "", "", "Four.", ""])))

    assert (document.text, document.without_text) == ("One.\n\nFour.", "pages 2-3, 5 of 5")


def test_a_pdf_without_text_is_refused(write: Write) -> None:
    code, fault = code_of(write("a.pdf", pdf(["", ""])))
    assert code == "no_text"
    assert "on any of its 2 pages" in fault
    assert "OCR" in fault


def test_an_encrypted_pdf_is_refused_and_one_that_anybody_may_open_is_read(write: Write) -> None:
    assert code_of(write("a.pdf", pdf(["Secret."], password="key")))[0] == "encrypted"
    assert read_document(write("b.pdf", pdf(["Open."], password=""))).text == "Open."


@pytest.mark.parametrize("content", [b"", b"no PDF", pdf(["One."])[:60]])
def test_a_broken_pdf_is_refused(write: Write, content: bytes) -> None:
    assert code_of(write("a.pdf", content))[0] in ("broken_file", "no_text")


# --- DOCX ------------------------------------------------------------------------------------


def test_a_word_document_keeps_headings_lists_and_tables(write: Write) -> None:
    cell = "<w:tc>{}</w:tc>"
    body = (
        paragraph("Harvest", "Heading1")
        + paragraph("Rye and oats &amp; barley.")
        + paragraph("Sums", "Heading2")
        + "<w:tbl><w:tr>"
        + cell.format(paragraph("rye"))
        + cell.format(paragraph("12"))
        + "</w:tr></w:tbl>"
    )
    assert read_document(write("a.docx", docx(body))).text == (
        "# Harvest\n\nRye and oats & barley.\n\n## Sums\n\n| rye | 12 |\n| --- | --- |"
    )


def test_text_boxes_and_insertions_are_read_and_deletions_are_not(write: Write) -> None:
    body = (
        "<w:p><w:r><w:t>Kept </w:t></w:r><w:ins><w:r><w:t>and new</w:t></w:r></w:ins>"
        "<w:del><w:r><w:delText> and gone</w:delText></w:r></w:del></w:p>"
    )
    assert read_document(write("a.docx", docx(body))).text == "Kept and new"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"no archive", "broken_file"),
        (docx(paragraph("x"))[:100], "broken_file"),
        (archive({"a.txt": "x"}), "broken_file"),
        (docx("<w:p>"), "broken_file"),
        (docx(""), "no_text"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 WordDocument", "broken_file"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"), "encrypted"),
        (docx(paragraph("x" * (65 * 2**20))), "file_too_large"),
    ],
    ids=range(8),
)
def test_a_word_document_that_gives_no_text_says_why(
    write: Write, content: bytes, code: str
) -> None:
    assert code_of(write("a.docx", content))[0] == code


def test_a_document_nested_without_end_costs_itself_alone(write: Write) -> None:
    deep = "<w:tbl><w:tr><w:tc>" * 3000 + paragraph("x") + "</w:tc></w:tr></w:tbl>" * 3000
    assert code_of(write("a.docx", docx(deep)))[0] == "broken_file"


# --- EPUB ------------------------------------------------------------------------------------


def page(text: str) -> str:
    namespace = "http://www.w3.org/1999/xhtml"
    return f"<html xmlns='{namespace}'><head><title/></head><body>{text}</body></html>"


def test_the_chapters_of_a_book_are_one_text_in_their_order(write: Write) -> None:
    book = epub({"b one.xhtml": page("<h1>One</h1><p>First.</p>"), "a.xhtml": page("<p>Then.</p>")})
    document = read_document(write("a.epub", book))

    assert (document.text, document.without_text) == ("# One\n\nFirst.\n\nThen.", None)


@pytest.mark.parametrize("suffix", [".xhtml", ".XHTML", ".bin"])
def test_a_book_whose_chapters_unpack_to_too_much_is_refused(write: Write, suffix: str) -> None:
    chapters = {f"{number}{suffix}": "<p>" + "x" * (17 * 2**20) for number in range(4)}
    assert code_of(write("a.epub", epub(chapters)))[0] == "file_too_large"


def test_chapters_without_text_are_named(write: Write) -> None:
    book = epub(
        {"cover.xhtml": page("<img/>"), "a.xhtml": page("<p>Text.</p>"), "gone.xhtml": None}
    )
    document = read_document(write("a.epub", book))

    assert document.text == "Text."
    assert document.without_text == "chapters cover.xhtml, gone.xhtml of 3"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"no archive", "broken_file"),
        (archive({"a.txt": "x"}), "broken_file"),
        (archive({"META-INF/container.xml": "<broken"}), "broken_file"),
        (archive({"META-INF/container.xml": "<container/>"}), "broken_file"),
        (epub({"cover.xhtml": page("<img/>")}), "no_text"),
        (epub({}), "no_text"),
        (epub({"a.xhtml": "?"}, encrypted=["a.xhtml"]), "encrypted"),
    ],
    ids=range(7),
)
def test_a_book_that_gives_no_text_says_why(write: Write, content: bytes, code: str) -> None:
    assert code_of(write("a.epub", content))[0] == code


# --- without the extra -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "module"), [("a.pdf", "pypdfium2"), ("a.docx", "mammoth"), ("A.DOCX", "mammoth")]
)
def test_a_missing_extra_is_named_with_the_command_to_install_it(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed

    code, fault = code_of(write(name, b"x"))

    assert code == "extra_missing"
    assert "pip install 'tidemill[files]'" in fault


def test_pages_are_named_shortly() -> None:
    assert pages_in_words([3], 10) == "page 3 of 10"
    assert pages_in_words([1, 2, 3, 7, 9, 10], 1200) == "pages 1-3, 7, 9-10 of 1,200"
    assert pages_in_words(range(1, 2000, 2), 2000) == "1,000 pages of 2,000"
