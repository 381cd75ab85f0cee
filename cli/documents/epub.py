"""EPUB: extracts the text of its chapters in reading order, and finds those without text."""

import posixpath
from collections.abc import Iterator
from urllib.parse import unquote
from xml.etree import ElementTree

from cli.documents.archive import Archive
from cli.documents.document import Document, UnreadableDocument
from cli.documents.markup import page_text

CONTAINER, ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
MAX_CHAPTERS_NAMED = 8


def read(content: bytes) -> Document:
    with Archive(content, "EPUB") as archive:
        chapters = list(dict.fromkeys(_chapters(archive)))
        locked = _encrypted(archive)
        if chapters and all(name in locked for name in chapters):
            fault = "is encrypted (DRM): none of its chapters can be read"
            raise UnreadableDocument("encrypted", fault)
        texts = {name: "" if name in locked else _text_of(archive, name) for name in chapters}
    text = "\n\n".join(filter(None, texts.values()))
    if not text:
        fault = f"has no text in any of its {len(chapters):,} chapters"
        raise UnreadableDocument("no_text", fault)
    empty = [posixpath.basename(name) for name, words in texts.items() if not words]
    return Document(text, _in_words(empty, len(chapters)) if empty else None)


def _chapters(archive: Archive) -> Iterator[str]:
    """The names of the chapters' files, in order of the book's spine."""
    root = next(_elements(archive, CONTAINER, "rootfile"), None)
    package = root.get("full-path", "") if root is not None else ""
    folder = posixpath.dirname(package)
    files = {}
    for item in _elements(archive, package, "item"):
        if "nav" not in item.get("properties", "").split():  # the table of contents
            href = unquote(item.get("href", "")).partition("#")[0]
            files[item.get("id")] = posixpath.normpath(posixpath.join(folder, href))
    for reference in _elements(archive, package, "itemref"):
        if reference.get("idref") in files:
            yield files[reference.get("idref")]


def _encrypted(archive: Archive) -> frozenset[str]:
    """The files that cannot be read without the book's key."""
    if ENCRYPTION not in archive.names:
        return frozenset()
    references = _elements(archive, ENCRYPTION, "CipherReference")
    return frozenset(posixpath.normpath(unquote(each.get("URI", ""))) for each in references)


def _elements(archive: Archive, name: str, tag: str) -> Iterator[ElementTree.Element]:
    try:
        root = ElementTree.fromstring(archive.read(name))
    except (ElementTree.ParseError, LookupError, ValueError):
        raise UnreadableDocument("broken_file", f"is no EPUB that can be read: {name}") from None
    return (each for each in root.iter() if str(each.tag).rpartition("}")[2] == tag)


def _text_of(archive: Archive, name: str) -> str:
    try:
        return page_text(archive.read(name))
    except UnreadableDocument as error:
        if error.code == "file_too_large":
            raise
        return ""  # this chapter is missing or broken; the others need not be


def _in_words(names: list[str], num_chapters: int) -> str:
    if len(names) > MAX_CHAPTERS_NAMED:
        return f"{len(names):,} of {num_chapters:,} chapters"
    shown = ", ".join(names)
    return f"{'chapter' if len(names) == 1 else 'chapters'} {shown} of {num_chapters:,}"
