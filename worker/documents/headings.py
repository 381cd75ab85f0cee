"""Markdown headings, and the sections that they begin."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from worker.documents.translation.layout import fences

HEADING = re.compile(r"^(#{1,6})[ \t]+(\S[^\r\n]{0,199})", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Heading:
    start: int
    end: int
    level: int
    line: str


def headings_of(text: str) -> Iterator[Heading]:
    """The headings in order. A comment in fenced code is not one."""
    code = fences(text)
    start, end = next(code, (len(text), len(text)))
    for match in HEADING.finditer(text):
        while match.start() >= end and start < len(text):
            start, end = next(code, (len(text), len(text)))
        if not start <= match.start() < end:
            yield Heading(match.start(), match.end(), len(match[1]), match[0].rstrip())


def section_starts(text: str) -> frozenset[int]:
    """The start of each section. A heading right below another one does not begin a section."""
    starts, last = [], None
    for heading in headings_of(text):
        if last is None or text[last.end : heading.start].strip():
            starts.append(heading.start)
        last = heading
    return frozenset(starts)
