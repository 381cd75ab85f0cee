"""Layout: separates the running text of a document from its form.

Form is blank lines, indentation, list markers, heading marks, table rules, block tags, fenced code,
scripts, comments, link targets and front matter. The lines of a wrapped paragraph are one run, with
breaks in it.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from worker.documents.translation.placeholders import ATTRIBUTES, CODE

LINE = re.compile(
    r"[^\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029]*"
    r"(?:\r\n|[\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029]|$)"
)
LINE_ENDS = "\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
FENCE = re.compile(r"[ \t]*+(?:>[ \t]*+){0,8}(`{3,}+|~{3,}+)")
MARKER = re.compile(
    r"(?P<quote>[ \t]*+(?:>[ \t]*+){0,32})"
    r"(?P<own>(?:(?:[-*+\u2022\u2023\u25e6\u2043\u2013\u2014]|\(?(?:\d{1,9}|[A-Za-z])[.)])[ \t]++"
    r"(?:\[[ xX]\][ \t]++)?|\#{1,6}[ \t]++|\[\^[^\[\]\s]{1,50}\]:[ \t]++)?)\s*+"
)
ABBREVIATED = re.compile(r"[A-Z]\.[ \t]")  # an initial rather than a list's letter
# What `[name]` leads to, with a title or without.
DEFINITION = re.compile(
    r"^(?:[ \t>]{0,32})\[(?!\^)([^\[\]\n]{1,200})\]:[ \t]++(?:<[^<>\n]{0,2000}>|\S{1,2000}+)"
    r"(?:[ \t]++(?:\"[^\"\n]{0,300}\"|'[^'\n]{0,300}'|\([^()\n]{0,300}\)))?[ \t]*+(?=[\r\n]|\Z)",
    re.MULTILINE,
)
# Whose content is no running text, over as many lines as it has; not where it is only named.
RAW = re.compile(
    r"(?:^[ \t]*+|(?<=>))<(script|style|pre|textarea)(?=[\s>])|(?<!`)(<!--)",
    re.IGNORECASE | re.MULTILINE,
)
RAW_END = re.compile(r"</(script|style|pre|textarea)\s*>|(-->)", re.IGNORECASE)
# Settings before a page, at its beginning: YAML between lines of hyphens, TOML between pluses.
# By the line that opens them: the lines that close them, and how one of them begins.
SETTINGS = {
    "---": (("---", "..."), re.compile(r"[\w.-]{1,100}:(?:\s|$)|[ \t#-]|\s*$")),
    "+++": (("+++",), re.compile(r"[\w.\"'-]{1,100}[ \t]*=|[ \t#\[\]}\"']|\s*$")),
}
MAX_SETTINGS = 300  # lines
TABLE_RULE = re.compile(r"[ \t>]{0,32}\|?(?:[ \t]*:?-+:?[ \t]*\|)+(?:[ \t]*:?-+:?)?[ \t]*")
BLOCK_TAG = re.compile(
    r"</?(?:address|article|aside|blockquote|body|br|caption|center|dd|details|div|dl|dt|fieldset"
    r"|figcaption|figure|footer|form|h[1-6]|head|header|hr|html|li|link|main|meta|nav|ol|option|p"
    r"|pre|section|select|summary|table|tbody|td|tfoot|th|thead|title|tr|ul)"
    rf"(?:\s(?:{ATTRIBUTES}|[^<>]{{0,1000}}))?/?>",
    re.IGNORECASE,
)
CELL_RULE = re.compile(r"(?<!\\)\|")
MIN_WRAP_WIDTH = 40  # columns; narrower lines mean their ends
MIN_LINE = 25  # of a line that goes on in small letters


@dataclass(frozen=True, slots=True)
class TextRun:
    """A range of running text, and its line breaks that mean only a space."""

    start: int
    end: int
    breaks: tuple[tuple[int, int], ...] = ()
    is_cell: bool = False  # of a table whose cells end at a `|`


@dataclass(frozen=True, slots=True)
class Line:
    """The range of a line's words; `quote` is the prefix of a quotation."""

    start: int
    end: int
    quote: str
    has_marker: bool
    is_row: bool = False  # of a table
    is_hard: bool = False  # its end means something

    @property
    def width(self) -> int:
        return self.end - self.start


def runs_of(text: str) -> Iterator[TextRun]:
    """The runs of a document, in order."""
    for block in _blocks(text):
        yield from _within_tags(text, block)


def lines_of(text: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Each line, including its end."""
    end = len(text) if end is None else end
    while start < end:
        match = LINE.match(text, start, end)
        assert match is not None
        yield match.span()
        start = match.end()


def _blocks(text: str) -> Iterator[list[Line]]:
    """Groups of lines that belong together: a paragraph, a list item, a heading."""
    block: list[Line] = []
    for start, end, is_row in _free_lines(text):
        content_end = end - len(text[start:end]) + len(text[start:end].rstrip(LINE_ENDS))
        line = _line(text, start, content_end, is_row)
        if line is None or not block or line.has_marker or line.quote != block[-1].quote:
            if block:
                yield block
            block = []
        if line is not None:
            block.append(line)
    if block:
        yield block


def _form(text: str) -> list[tuple[int, int]]:
    """The spans that are not running text, in order and disjoint, such as fenced code."""
    code = list(fences(text))
    spans = sorted([*code, *_raw(text, code)])
    if settings := _settings(text):
        spans.insert(0, settings)
    apart: list[tuple[int, int]] = []
    for start, end in spans:
        if not apart or start >= apart[-1][1]:
            apart.append((start, end))
        elif end > apart[-1][1]:
            apart[-1] = apart[-1][0], end
    return apart


def fences(text: str) -> Iterator[tuple[int, int]]:
    """The spans of fenced code; an unclosed fence is none."""
    if "```" not in text and "~~~" not in text:
        return
    opened: tuple[int, str] | None = None
    for start, end in lines_of(text):
        if (match := FENCE.match(text, start, end)) is None:
            continue
        mark = match[1]
        if opened is None:
            opened = start, mark
        elif mark.startswith(opened[1]) and not (
            text[start:end].strip(f"> \t{LINE_ENDS}{mark[0]}")
        ):
            yield opened[0], end
            opened = None


def _raw(text: str, code: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The spans of scripts, comments and the like, outside of code; an unclosed one is none."""
    if "<" not in text:
        return
    ends: dict[str, list[int]] = {}
    for match in RAW_END.finditer(text):
        ends.setdefault((match[1] or "!").lower(), []).append(match.end())
    at = 0
    for match in RAW.finditer(text):
        index = bisect_right(code, (match.start(), len(text))) - 1
        if match.start() < at or (index >= 0 and match.start() < code[index][1]):
            continue
        own = ends.get((match[1] or "!").lower(), [])
        index = bisect_right(own, match.end())
        # A comment within a line is one within a sentence.
        if index < len(own) and (match[1] or "\n" in text[match.start() : own[index]]):
            at = own[index]
            yield match.start(), at


def _settings(text: str) -> tuple[int, int] | None:
    lines = ((text[start:end].strip("\ufeff" + LINE_ENDS), end) for start, end in lines_of(text))
    first, _ = next(lines, ("", 0))
    if (form := SETTINGS.get(first.rstrip())) is None:
        return None
    closing, setting = form
    for number, (line, end) in enumerate(lines):
        if line.rstrip() in closing:
            return (0, end) if number else None
        if number >= MAX_SETTINGS or not setting.match(line):
            return None
    return None


def link_labels(text: str) -> frozenset[str]:
    """The labels of a document's links, normalised as in Markdown."""
    if "]:" not in text:
        return frozenset()
    return frozenset(match[1].casefold() for match in DEFINITION.finditer(text))


def _free_lines(text: str) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether it is a table row) of the lines outside of form.

    Form ends a block like a blank line.
    """
    at, has_tables = 0, "|" in text
    for start, end in (*_form(text), (len(text), len(text))):
        lines = lines_of(text, at, start)
        if has_tables:
            yield from _with_tables(text, list(lines))
        else:
            yield from ((one, other, False) for one, other in lines)
        yield end, end, False  # an empty line
        at = end


def _with_tables(text: str, lines: list[tuple[int, int]]) -> Iterator[tuple[int, int, bool]]:
    """Mark table rows. Outer rules are optional; the line below the header identifies a table."""
    rules = {
        at
        for at, (start, end) in enumerate(lines)
        if at and "|" in text[start:end] and TABLE_RULE.fullmatch(text[start:end].rstrip())
    }
    is_table = False
    for at, (start, end) in enumerate(lines):
        has_rule = CELL_RULE.search(text, start, end) is not None
        is_table = has_rule and (is_table or at + 1 in rules)
        yield start, end, is_table


def _line(text: str, start: int, end: int, is_row: bool) -> Line | None:
    """The layout of a line; None if it has no words."""
    if DEFINITION.match(text, start, end):
        return None
    marker = MARKER.match(text, start, end)
    assert marker is not None
    own = marker["own"]
    at = marker.end()
    if own and ABBREVIATED.fullmatch(own):
        own, at = "", marker.start("own")
    content = text[at:end]
    stripped = content.removesuffix("\\").rstrip()  # which means a break, as two spaces do
    if not stripped:
        return None
    is_row |= stripped[0] == "|"
    return Line(
        start=at,
        end=at + len(stripped),
        quote="".join(marker["quote"].split()),
        has_marker=bool(own) or is_row,
        is_row=is_row,
        is_hard=is_row or own.startswith("#") or content.endswith(("  ", "\\")),
    )


def _within_tags(text: str, block: list[Line]) -> Iterator[TextRun]:
    """The runs of a block, split at table cells and block tags."""
    for lines in _unwrapped(text, block):
        start, end = lines[0].start, lines[-1].end
        breaks = [(one.end, other.start) for one, other in pairwise(lines)]
        form: Iterable[re.Match[str]] = _block_tags(text, start, end)
        if lines[0].is_row:
            form = CELL_RULE.finditer(text, start, end)
        at = start
        for match in form:
            yield from _run(text, at, match.start(), breaks, lines[0].is_row)
            at = match.end()
        yield from _run(text, at, end, breaks, lines[0].is_row)


def _block_tags(text: str, start: int, end: int) -> Iterator[re.Match[str]]:
    """The tags that act as tags, and are not quoted in code."""
    tags = BLOCK_TAG.finditer(text, start, end)
    if "`" not in text[start:end]:
        return tags
    code = [match.span() for match in CODE.finditer(text, start, end) if match["ticks"]]
    starts = [one for one, _ in code]

    def is_code(tag: re.Match[str]) -> bool:
        index = bisect_right(starts, tag.start()) - 1
        return index >= 0 and tag.end() <= code[index][1]

    return (tag for tag in tags if not is_code(tag))


def _run(
    text: str, start: int, end: int, breaks: list[tuple[int, int]], is_cell: bool
) -> Iterator[TextRun]:
    content = text[start:end]
    start, end = end - len(content.lstrip()), start + len(content.rstrip())
    if start < end:
        first = bisect_right(breaks, (start, end))
        last = bisect_left(breaks, (end, end), lo=first)
        yield TextRun(start, end, tuple(breaks[first:last]), is_cell)


def _unwrapped(text: str, block: list[Line]) -> Iterator[list[Line]]:
    """Group the lines of a block by the line that they were wrapped from."""
    width = max(line.width for line in block)
    together = [block[0]]
    for line in block[1:]:
        if _is_wrapped(text, together[-1], line, width):
            together.append(line)
        else:
            yield together
            together = [line]
    yield together


def _is_wrapped(text: str, line: Line, next_line: Line, width: int) -> bool:
    if line.is_hard:
        return False
    if text[next_line.start].islower() and line.width >= MIN_LINE:
        return True
    # A greedy wrapper begins a line when the next word does not fit.
    first_word = text[next_line.start : next_line.end].split(None, 1)[0]
    return width >= MIN_WRAP_WIDTH and line.width + 1 + len(first_word) > width
