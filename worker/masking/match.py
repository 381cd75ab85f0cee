"""Match: a range of a text to mask, and the interface of finders."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tasks.configuration.masking import KIND
from worker.documents.translation.placeholders import Span, blanked

UNMASKED = re.compile(r"\w(?:[^\x00]*\w)?")  # masked characters are replaced by \x00


@dataclass(frozen=True, slots=True, order=True)
class Match:
    """A range of a text to mask, and its kind, such as EMAIL."""

    start: int
    end: int
    kind: str


class Finder(Protocol):
    """A rule that finds matches. It must be thread-safe, and should be deterministic."""

    def find(self, text: str) -> Iterable[Match]: ...


def matches_of(finders: Sequence[Finder], text: str) -> list[Match]:
    """Return the matches of all finders, in order.

    Where matches overlap, the first finder's wins, and of one finder's the first and longest. The
    rest of the others is masked separately, so that everything that a finder has found is masked.
    """
    matches: list[Match] = []
    free = text
    for finder in finders:
        at, num_before = 0, len(matches)
        found = _within(finder.find(free), len(text))
        for each in sorted(found, key=lambda match: (match.start, -match.end)):
            matches += _unmasked_parts(free, each, at)
            at = max(at, each.end)
        if len(matches) > num_before:
            matches.sort()
            free = blanked(text, [Span(each.start, each.end) for each in matches])
    return matches


def _unmasked_parts(free: str, match: Match, at: int) -> Iterator[Match]:
    """Yield the match, or its unmasked parts if some of it is masked, without outer punctuation."""
    if match.start >= at and "\x00" not in free[match.start : match.end]:
        yield match
        return
    for part in UNMASKED.finditer(free, max(match.start, at), match.end):
        yield Match(part.start(), part.end(), match.kind)


def _within(matches: Iterable[Match], length: int) -> Iterable[Match]:
    """Yield the matches within the text, since a plugged-in finder may return any range."""
    for each in matches:
        if 0 <= each.start < each.end <= length:
            yield each if is_kind(each.kind) else Match(each.start, each.end, kind_of(each.kind))


def is_kind(label: object) -> bool:
    return isinstance(label, str) and KIND.fullmatch(label) is not None


def kind_of(label: object) -> str:
    """Turn another program's label into a kind.

    Labels such as `EMAIL_ADDRESS` and `person` are normalised, since a placeholder of another form
    would never be restored.
    """
    letters = re.sub("[^A-Z0-9]", "", str(label or "").upper()).lstrip("0123456789")
    return letters[:MAX_KIND] or "OTHER"


MAX_KIND = 31
