"""Glossary: finds terms in a sentence, and checks whether a translation keeps them.

The longest term matches first. It begins and ends at word boundaries, or anywhere in scripts
without spaces between words. A term in lower case matches in any case; one with capitals matches as
written, or all in capitals.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from worker.documents.translation.placeholders import Span

# Thai and Lao, Tibetan, Burmese, Khmer, Chinese and Japanese.
SPACELESS = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
KATAKANA = re.compile("[\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9f]")  # a word is a run of it
HANGUL = re.compile("[\u1100-\u11ff\uac00-\ud7a3]")  # particles follow a noun without a space
SAME = str.maketrans({"\u2019": "'", "\u2010": "-", "\u2011": "-"})
SPACE = re.compile(r"\s")
ZERO_WIDTH_JOINER = "\u200d"


@dataclass(frozen=True, slots=True)
class Term:
    """A term in a sentence, and its translation."""

    start: int
    end: int
    translation: str
    in_any_case: bool  # of the translation

    @property
    def span(self) -> Span:
        return Span(self.start, self.end)


class Glossary:
    """The terms of one job."""

    def __init__(self, entries: Mapping[str, str | None]) -> None:
        self._entries: dict[str, tuple[str, str | None]] = {}
        for term, translation in entries.items():
            for form in ("NFC", "NFD"):
                written = unicodedata.normalize(form, term)
                self._entries.setdefault(folded(written), (written, translation))
        lengths: dict[str, set[int]] = {}
        for each in self._entries:
            lengths.setdefault(each[0], set()).add(len(each))
        self._lengths = {first: sorted(each, reverse=True) for first, each in lengths.items()}

    def find(self, text: str, spans: Sequence[Span] = ()) -> tuple[Term, ...]:
        """The terms of a text, in order; none overlaps another or any of these spans."""
        return tuple(self._find(text, spans)) if self._entries else ()

    def _find(self, text: str, spans: Sequence[Span]) -> Iterator[Term]:
        small = folded(text)
        stops = iter([*spans, Span(len(text), len(text))])
        stop = next(stops)
        at = 0
        while at < len(text):
            if at >= stop.start:
                at, stop = max(at, stop.end), next(stops, Span(len(text), len(text)))
                continue
            term = self._term_at(text, small, at, stop.start)
            if term is None:
                at += 1
            else:
                yield term
                at = term.end

    def _term_at(self, text: str, small: str, at: int, end: int) -> Term | None:
        lengths = self._lengths.get(small[at])
        if lengths is None or not begins_word(text, at):
            return None
        for length in lengths:
            if at + length > end:
                continue
            entry = self._entries.get(small[at : at + length])
            if entry is None or not ends_word(text, at + length):
                continue
            term, translation = entry
            written = text[at : at + length]
            if not _is_meant(term, written):
                continue
            if translation is None:
                return Term(at, at + length, written, in_any_case=False)
            return Term(
                at,
                at + length,
                _in_the_case_of(written, term, translation),
                in_any_case=translation == translation.lower(),
            )
        return None


def missed_terms(terms: Iterable[Term], translation: str) -> Counter[str]:
    """How many occurrences of each term's translation are missing."""
    num_required = Counter((term.translation, term.in_any_case) for term in terms)
    missing: Counter[str] = Counter()
    unread = translation
    # Longest first, so that a term within another does not count twice.
    for (text, in_any_case), num in sorted(num_required.items(), key=lambda each: -len(each[0][0])):
        places = list(_places(unread, text, in_any_case))[:num]
        for at in places:
            unread = unread[:at] + "\x00" * len(text) + unread[at + len(text) :]
        if len(places) < num:
            missing[text] = num - len(places)
    return missing


def _places(text: str, part: str, in_any_case: bool) -> Iterator[int]:
    if in_any_case:
        text, part = folded(text), folded(part)
    else:
        text, part = text.translate(SAME), part.translate(SAME)
    at = text.find(part)
    while at >= 0:
        if begins_word(text, at) and ends_word(text, at + len(part)):
            yield at
            at = text.find(part, at + len(part))
        else:
            at = text.find(part, at + 1)


def folded(text: str) -> str:
    """The text in lower case with plain spaces, of equal length."""
    small = text.lower()
    if len(small) != len(text):  # a few capital letters have two small ones
        small = "".join(lower if len(lower := each.lower()) == 1 else each for each in text)
    return SPACE.sub(" ", small.translate(SAME))


def begins_word(text: str, at: int) -> bool:
    """Whether a word may begin here."""
    return _is_between_words(text, at)


def ends_word(text: str, at: int) -> bool:
    """Whether a word may end here."""
    if _is_between_words(text, at):
        return True
    return bool(HANGUL.match(text[at - 1]) and HANGUL.match(text[at]))


def _is_between_words(text: str, at: int) -> bool:
    if at <= 0 or at >= len(text):
        return True
    before, after = text[at - 1], text[at]
    if unicodedata.category(after)[0] == "M" or ZERO_WIDTH_JOINER in (before, after):
        return False
    if not (_is_of_word(before) and _is_of_word(after)):
        return True
    if KATAKANA.match(before) and KATAKANA.match(after):
        return False
    return bool(SPACELESS.match(before) or SPACELESS.match(after))


def _is_of_word(character: str) -> bool:
    return character == "_" or unicodedata.category(character)[0] in "LNM"


def _is_meant(term: str, written: str) -> bool:
    if term == term.lower():
        return True
    as_written = SPACE.sub(" ", written.translate(SAME))
    return as_written == term.translate(SAME) or (written.isupper() and not term.isupper())


def _in_the_case_of(written: str, term: str, translation: str) -> str:
    """The translation in capitals if the term is, or capitalised if the term begins so."""
    if written.isupper() and sum(map(str.isalpha, written)) > 1 and not term.isupper():
        return translation.upper()
    if written[:1].isupper() and not term[:1].isupper():
        return translation[:1].upper() + translation[1:]
    return translation
