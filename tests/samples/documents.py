"""Small files as Word, a scanner or a publisher would write them."""

import io
import zipfile
from collections.abc import Mapping, Sequence

import pypdf

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def pdf(pages: Sequence[str], password: str | None = None, owner_password: str = "owner") -> bytes:
    """A PDF with a page for each text and a line for each of its lines; "" is a page without
    text."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode())
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for number, text in enumerate(pages):
        content = "q 10 10 50 50 re f Q"  # a shape, which has no text
        if text:
            lines = " T* ".join(f"({line}) Tj" for line in text.split("\n"))
            content = f"BT /F1 12 Tf 14 TL 72 720 Td {lines} ET"
        page = (
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * number} 0 R >>"
        )
        objects.append(page.encode())
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream".encode())
    made = b"%PDF-1.4\n"
    places = []
    for number, each in enumerate(objects, start=1):
        places.append(len(made))
        made += f"{number} 0 obj\n".encode() + each + b"\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    trailer = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(made)}\n%%EOF"
    made += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}".encode()
    if password is None:
        return made
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(made))
    writer.encrypt(password, owner_password, algorithm="RC4-128")
    encrypted = io.BytesIO()
    writer.write(encrypted)
    return encrypted.getvalue()


def archive(files: Mapping[str, str | bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return made.getvalue()


def docx(body: str) -> bytes:
    """A Word document around the body's XML."""
    types = "http://schemas.openxmlformats.org/package/2006/content-types"
    relations = "http://schemas.openxmlformats.org/package/2006/relationships"
    document = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    return archive(
        {
            "[Content_Types].xml": f'<Types xmlns="{types}"/>',
            "_rels/.rels": f'<Relationships xmlns="{relations}"><Relationship Id="r1" '
            f'Type="{document}" Target="word/document.xml"/></Relationships>',
            "word/document.xml": f'<w:document xmlns:w="{W}"><w:body>{body}</w:body></w:document>',
        }
    )


def paragraph(text: str, style: str = "") -> str:
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{text}</w:t></w:r></w:p>"


def epub(chapters: Mapping[str, str | None], encrypted: Sequence[str] = ()) -> bytes:
    """A book with a file for each chapter, in that order; None: the file is missing."""
    files: dict[str, str | bytes] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": "<container><rootfiles>"
        '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
    }
    items = "".join(
        f'<item id="{name}" href="text/{name.replace(" ", "%20")}"/>' for name in chapters
    )
    spine = "".join(f'<itemref idref="{name}"/>' for name in chapters)
    files["OEBPS/book.opf"] = (
        '<package xmlns="http://www.idpf.org/2007/opf"><manifest>'
        f'<item id="toc" href="toc.xhtml" properties="nav"/>{items}</manifest>'
        f'<spine><itemref idref="toc"/>{spine}</spine></package>'
    )
    files["OEBPS/toc.xhtml"] = "<html><body><p>Contents</p></body></html>"
    for name, html in chapters.items():
        if html is not None:
            files[f"OEBPS/text/{name}"] = html
    if encrypted:
        references = "".join(f'<CipherReference URI="OEBPS/text/{name}"/>' for name in encrypted)
        files["META-INF/encryption.xml"] = f"<encryption>{references}</encryption>"
    return archive(files)
