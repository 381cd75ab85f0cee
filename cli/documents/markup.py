"""HTML: converts a page to Markdown, so that headings, lists, tables and code keep their form.

Links keep their words. Emphasis and pictures are left out, and so are scripts, styles and the head.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from html.parser import HTMLParser

from cli.documents.document import Document, UnreadableDocument
from cli.documents.plain import codec_of, decoded

MAX_HEAD_BYTES = 4096
CHARSET = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]+)""", re.IGNORECASE)

UNREAD = frozenset({"script", "style", "template", "title", "svg", "iframe", "object", "noscript"})
HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
BLOCKS = frozenset(
    (
        *("address", "article", "aside", "body", "caption", "center", "dd", "details", "dialog"),
        *("div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "header"),
        *("hgroup", "html", "legend", "main", "nav", "option", "p", "search", "section", "select"),
        *("summary", "table", "tbody", "tfoot", "thead", "tr"),
    )
)
LISTS = ("ul", "ol", "menu")
SPACE = re.compile(r"[ \t\n\r\f]+")
ITEM = re.compile(r"(?:> )*\s*(?:- |\d+\. )")
MAX_DIGITS = 9  # of the number of a list's item

Attributes = list[tuple[str, str | None]]


def read(content: bytes, encoding: str | None = None) -> Document:
    """Read a page. encoding: of a page that names none and is not in UTF-8"""
    text = page_text(content, encoding)
    if not text:
        raise UnreadableDocument("no_text", "holds no text, only markup")
    return Document(text)


def page_text(content: bytes, encoding: str | None = None) -> str:
    """Decode a page in the encoding that it names; empty if it has no text."""
    return markdown_of(decoded(content, _encoding_of(content), encoding))


def _encoding_of(content: bytes) -> str | None:
    """The encoding that the beginning of a page names; None if there is no such encoding."""
    named = CHARSET.search(content[:MAX_HEAD_BYTES])
    if named is None:
        return None
    codec = codec_of(named[1].decode("ascii"))
    # A page that can be read as far as this does not have two bytes a character.
    return None if codec is None or codec.startswith("utf-16") else codec


def markdown_of(html: str) -> str:
    """Convert a page to Markdown; empty if it has no text."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    return parser.text()


@dataclass(slots=True)
class _List:
    is_ordered: bool
    number: int = 0  # of the item that is being read
    has_item: bool = False  # an item is being read
    has_marker: bool = True  # and its marker is written

    @property
    def marker(self) -> str:
        return f"{self.number}. " if self.is_ordered else "- "


@dataclass(slots=True)
class _Cell:
    blocks: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Table:
    rows: list[list[_Cell]] = field(default_factory=list)
    before: list[str] = field(default_factory=list)  # a caption, or what is in no cell
    has_heads: bool = False  # of rows or columns: it is no layout


class _Parser(HTMLParser):
    """Collects blocks: paragraphs, headings, list items, tables, each a piece of Markdown."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._blocks: list[str] = []
        self._pieces: list[str] = []  # of the block that is being read
        self._prefix = ""
        self._lists: list[_List] = []
        self._tables: list[_Table] = []
        self._num_quotes = 0
        self._unread: list[str] = []
        self._pre = 0

    def text(self) -> str:
        while self._tables:
            self._end_table()
        self._end_block()
        return "\n".join(_spaced(self._blocks)).strip("\n")

    def handle_starttag(self, tag: str, attrs: Attributes) -> None:
        if self._unread or tag in UNREAD:
            self._unread += [tag] if tag in UNREAD else []
        elif tag == "br":
            self._pieces.append("\n")
        elif tag == "code" and not self._pre:
            self._pieces.append("`")
        elif tag == "pre":
            self._end_block()
            self._pre += 1
        elif tag == "hr":
            self._end_block()
            self._put("---")
        elif tag in HEADINGS:
            self._end_block()
            self._prefix = HEADINGS[tag]
        elif tag == "blockquote":
            self._end_block()
            self._num_quotes += 1
        elif tag in LISTS:
            self._end_block()
            self._lists.append(_List(tag == "ol", number=_number(attrs, "start", 1) - 1))
        elif tag == "li":
            self._end_block()
            self._start_item(attrs)
        elif tag == "table":
            self._end_block()
            self._tables.append(_Table())
        elif tag == "tr" and self._tables:
            self._end_block()
            self._tables[-1].rows.append([])
        elif tag in ("td", "th") and self._tables:
            self._end_block()
            table = self._tables[-1]
            table.has_heads |= tag == "th"
            if not table.rows:
                table.rows.append([])
            table.rows[-1].append(_Cell())
        elif tag in BLOCKS:
            self._end_block()

    def handle_startendtag(self, tag: str, attrs: Attributes) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._unread:
            if tag == self._unread[-1]:
                self._unread.pop()
        elif tag == "code" and not self._pre:
            self._pieces.append("`")
        elif tag == "pre" and self._pre:
            self._end_pre()
        elif tag == "blockquote":
            self._end_block()
            self._num_quotes = max(self._num_quotes - 1, 0)
        elif tag in LISTS and self._lists:
            self._end_block()
            self._lists.pop()
        elif tag == "table" and self._tables:
            self._end_table()
        elif tag in BLOCKS or tag in HEADINGS or tag in ("li", "td", "th"):
            self._end_block()

    def handle_data(self, data: str) -> None:
        if not self._unread:
            # A soft hyphen is no letter: it says where a line may end.
            self._pieces.append(data if self._pre else SPACE.sub(" ", data.replace("\xad", "")))

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        try:
            return super().parse_marked_section(i, report)
        except AssertionError:  # how the library refuses what Office and others write here
            return self.parse_bogus_comment(i)

    def _start_item(self, attrs: Attributes) -> None:
        if not self._lists:
            self._lists.append(_List(is_ordered=False))
        item = self._lists[-1]
        item.number = _number(attrs, "value", item.number + 1)
        item.has_item, item.has_marker = True, False

    def _end_block(self) -> None:
        if self._pre:
            self._end_pre()
            return
        lines = "".join(self._pieces).split("\n")
        self._pieces = []
        text = "\n".join(stripped for line in lines if (stripped := SPACE.sub(" ", line).strip()))
        prefix, self._prefix = self._prefix, ""
        if text.replace("`", "").strip():
            self._put(prefix + (text.replace("\n", " ") if prefix else text))

    def _end_pre(self) -> None:
        self._pre = 0
        text, self._pieces = "".join(self._pieces).strip("\n"), []
        if text.strip():
            fence = "```" if "```" not in text else "~~~~"
            self._put(f"{fence}\n{text}\n{fence}")

    def _end_table(self) -> None:
        self._end_block()
        table = self._tables.pop()
        for block in table.before:
            self._place(block)
        cells = [cell for row in table.rows for cell in row]
        if all(_is_cell(cell.blocks, table.has_heads) for cell in cells):
            rows = [
                [SPACE.sub(" ", " ".join(cell.blocks)).strip() for cell in row]
                for row in table.rows
            ]
            if any(any(row) for row in rows):
                self._place(_table(rows))
            return
        # One that is there for the layout of a page: what it holds, in its order.
        for cell in cells:
            for block in cell.blocks:
                self._place(block)

    def _put(self, text: str) -> None:
        """Add a block, inside of its list items and quotations."""
        if not self._tables:
            lines = text.split("\n")
            if self._lists and self._lists[-1].has_item:
                item = self._lists[-1]
                outer = " " * sum(len(each.marker) for each in self._lists[:-1])
                blank = " " * len(item.marker)
                first = blank if item.has_marker else item.marker
                lines = [
                    outer + (blank if number else first) + line for number, line in enumerate(lines)
                ]
                item.has_marker = True
            text = "\n".join("> " * self._num_quotes + line for line in lines)
        self._place(text)

    def _place(self, block: str) -> None:
        if not self._tables:
            self._blocks.append(block)
        elif self._tables[-1].rows and self._tables[-1].rows[-1]:
            self._tables[-1].rows[-1][-1].blocks.append(block)
        else:
            self._tables[-1].before.append(block)


def _number(attrs: Attributes, name: str, otherwise: int) -> int:
    value = dict(attrs).get(name) or ""
    return int(value) if value.isdecimal() and len(value) < MAX_DIGITS else otherwise


def _spaced(blocks: Iterable[str]) -> Iterable[str]:
    """The blocks, separated by blank lines except between list items."""
    before: str | None = None
    for block in blocks:
        if before is not None and not (ITEM.match(before) and ITEM.match(block)):
            yield ""
        yield block
        before = block


def _is_cell(blocks: list[str], has_heads: bool) -> bool:
    if any(block.startswith(("#", "```", "~~~", "|")) for block in blocks):
        return False
    return has_heads or (len(blocks) <= 1 and not any("\n" in block for block in blocks))


def _table(rows: list[list[str]]) -> str:
    width = max(map(len, rows))
    lines = [
        "| "
        + " | ".join(cell.replace("|", "\\|") for cell in [*row, *[""] * (width - len(row))])
        + " |"
        for row in rows
        if row
    ]
    return "\n".join([lines[0], "|" + " --- |" * width, *lines[1:]])
