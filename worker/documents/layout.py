"""Layout: which stretches of a document are running text, and which are only its form.

Blank lines, indentation, list markers, headings' signs, table rules, block tags and fenced
code are form. Lines that a paragraph was wrapped into are one stretch, with breaks in it.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

LINE = re.compile(
    r"[^\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029]*"
    r"(?:\r\n|[\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029]|$)"
)
LINE_ENDS = "\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
FENCE = re.compile(r"[ \t]*+(?:>[ \t]*+){0,8}(`{3,}+|~{3,}+)")
MARKER = re.compile(
    r"(?P<quote>[ \t]*+(?:>[ \t]*+){0,32})"
    r"(?P<own>(?:(?:[-*+\u2022\u2023\u25e6\u2043\u2013\u2014]|\(?(?:\d{1,9}|[A-Za-z])[.)])[ \t]++"
    r"(?:\[[ xX]\][ \t]++)?|\#{1,6}[ \t]++)?)\s*+"
)
ABBREVIATED = re.compile(r"[A-Z]\.[ \t]")  # an initial rather than a list's letter
BLOCK_TAG = re.compile(
    r"</?(?:address|article|aside|blockquote|body|br|caption|center|dd|details|div|dl|dt|fieldset"
    r"|figcaption|figure|footer|form|h[1-6]|head|header|hr|html|li|link|main|meta|nav|ol|option|p"
    r"|pre|section|select|summary|table|tbody|td|tfoot|th|thead|title|tr|ul)"
    r"(?:\s[^<>]{0,1000})?/?>",
    re.IGNORECASE,
)
CELL_RULE = re.compile(r"(?<!\\)\|")
MIN_WRAP_WIDTH = 40  # columns; narrower lines mean their ends
MIN_LINE = 25  # of a line that goes on in small letters


@dataclass(frozen=True, slots=True)
class TextRun:
    """A stretch of running text, and the line breaks within it that mean only a space."""

    start: int
    end: int
    breaks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """The range of a line's words; `quote` holds the marks that a whole quotation has."""

    start: int
    end: int
    quote: str
    has_marker: bool
    is_hard: bool = False  # its end means something

    @property
    def width(self) -> int:
        return self.end - self.start


def runs_of(text: str) -> Iterator[TextRun]:
    """The running text of a document, in order."""
    for block in _blocks(text):
        yield from _within_tags(text, block)


def lines_of(text: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Each line, its end included."""
    end = len(text) if end is None else end
    while start < end:
        match = LINE.match(text, start, end)
        assert match is not None
        yield match.span()
        start = match.end()


def _blocks(text: str) -> Iterator[list[Line]]:
    """Lines that belong together: a paragraph, an item, a heading."""
    block: list[Line] = []
    for start, end in _outside_fences(text):
        content_end = end - len(text[start:end]) + len(text[start:end].rstrip(LINE_ENDS))
        line = _line(text, start, content_end)
        if line is None or not block or line.has_marker or line.quote != block[-1].quote:
            if block:
                yield block
            block = []
        if line is not None:
            block.append(line)
    if block:
        yield block


def _outside_fences(text: str) -> Iterator[tuple[int, int]]:
    """The lines that are not fenced code; a fence that nothing closes is none.

    A fence ends a block as a blank line does.
    """
    lines = list(lines_of(text))
    marks = [
        (at, match[1])
        for at, (start, end) in enumerate(lines)
        if (match := FENCE.match(text, start, end)) is not None
    ]
    skipped: list[tuple[int, int]] = []
    opened: tuple[int, str] | None = None
    for at, mark in marks:
        if opened is None:
            opened = (at, mark)
        elif mark.startswith(opened[1]) and not (
            text[slice(*lines[at])].strip(f"> \t{LINE_ENDS}{mark[0]}")
        ):
            skipped.append((opened[0], at))
            opened = None
    at = 0
    for first, last in skipped:
        yield from lines[at:first]
        yield lines[last][1], lines[last][1]  # an empty line
        at = last + 1
    yield from lines[at:]


def _line(text: str, start: int, end: int) -> Line | None:
    """The line, or None where it has no words."""
    marker = MARKER.match(text, start, end)
    assert marker is not None
    own = marker["own"]
    at = marker.end()
    if own and ABBREVIATED.fullmatch(own):
        own, at = "", marker.start("own")
    content = text[at:end]
    stripped = content.rstrip()
    if not stripped:
        return None
    is_row = stripped[0] == "|"
    return Line(
        start=at,
        end=at + len(stripped),
        quote="".join(marker["quote"].split()),
        has_marker=bool(own) or is_row,
        is_hard=is_row or own.startswith("#") or content.endswith(("  ", "\\")),
    )


def _within_tags(text: str, block: list[Line]) -> Iterator[TextRun]:
    """The runs of a block, which end where a table's cell or a block tag does."""
    for lines in _unwrapped(text, block):
        start, end = lines[0].start, lines[-1].end
        breaks = [(one.end, other.start) for one, other in pairwise(lines)]
        form: Iterable[re.Match[str]] = BLOCK_TAG.finditer(text, start, end)
        if text.startswith("|", start):
            form = CELL_RULE.finditer(text, start, end)
        at = start
        for match in form:
            yield from _run(text, at, match.start(), breaks)
            at = match.end()
        yield from _run(text, at, end, breaks)


def _run(text: str, start: int, end: int, breaks: list[tuple[int, int]]) -> Iterator[TextRun]:
    content = text[start:end]
    start, end = end - len(content.lstrip()), start + len(content.rstrip())
    if start < end:
        first = bisect_right(breaks, (start, end))
        last = bisect_left(breaks, (end, end), lo=first)
        yield TextRun(start, end, tuple(breaks[first:last]))


def _unwrapped(text: str, block: list[Line]) -> Iterator[list[Line]]:
    """The lines of a block, those together that one line was wrapped into."""
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
