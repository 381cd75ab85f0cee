"""Match: a range of a text that is to be masked, and the finders that say so."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tasks.configuration.masking import KIND
from worker.documents.translation.placeholders import Span, blanked


@dataclass(frozen=True, slots=True, order=True)
class Match:
    """A range of a text to mask, and its kind, as EMAIL."""

    start: int
    end: int
    kind: str


class Finder(Protocol):
    """A rule that finds matches. Several threads may call it, and equal texts should give equal
    matches."""

    def find(self, text: str) -> Iterable[Match]: ...


def matches_of(finders: Sequence[Finder], text: str) -> list[Match]:
    """The matches in order; where those of two finders overlap, the first finder has it."""
    matches: list[Match] = []
    free = text
    for finder in finders:
        at, num_before = 0, len(matches)
        for each in sorted(_within(finder.find(free), len(text))):
            if each.start >= at and "\x00" not in free[each.start : each.end]:
                matches.append(each)
                at = each.end
        if len(matches) > num_before:
            matches.sort()
            free = blanked(text, [Span(each.start, each.end) for each in matches])
    return matches


def _within(matches: Iterable[Match], length: int) -> Iterable[Match]:
    """The matches that lie within the text: a plugged-in finder may say anything."""
    return (
        each for each in matches if 0 <= each.start < each.end <= length and KIND.match(each.kind)
    )
