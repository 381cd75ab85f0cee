"""Translatable: a document as its sentences and the form between them.

Sentences and form tile the source: joined unchanged, they are the source again.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, Self

from worker.documents.graphemes import is_between_graphemes, safe_cut
from worker.documents.sentences import sentence_ends
from worker.documents.splitting import pieces
from worker.documents.translation.layout import CELL_RULE, TextRun, link_labels, runs_of
from worker.documents.translation.placeholders import Span, find_spans, hidden
from worker.documents.translation.subtitles import cue_runs, is_subtitles

Format = Literal["text", "subtitles"]
# Written without spaces between sentences.
SPACELESS = frozenset({"zh", "ja", "yue", "wuu", "lzh"})
SPACELESS_LETTER = re.compile("[\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uff60]")
COMMAS = ";,\uff1b\uff0c\u3001\u060c\u061b"
OPENS = re.compile(r"<[A-Za-z\d]|!?\[|\{\\")


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of the source."""

    start: int
    end: int
    text: str  # without the line breaks that mean a space
    spans: tuple[Span, ...] = ()  # of the text: placeholders and markup
    breaks: tuple[tuple[float, str], ...] = ()  # relative places of breaks
    follows: bool = False  # it follows a sentence in the same paragraph
    is_cell: bool = False  # or in one, of a table whose cells end at a `|`


@dataclass(frozen=True, slots=True)
class Translatable:
    """A text, cut into sentences."""

    source: str
    format: Format
    sentences: tuple[Sentence, ...]

    @classmethod
    def of(cls, text: str, language: str, format: Format | None = None) -> Self:
        """Split a text. language: ISO 639-1; format: None: detected"""
        if format is None:
            format = "subtitles" if is_subtitles(text) else "text"
        runs = cue_runs(text) if format == "subtitles" else runs_of(text)
        labels = link_labels(text) if format == "text" else frozenset()
        sentences = tuple(each for run in runs for each in _sentences(text, run, language, labels))
        return cls(text, format, sentences)

    def tiles(self) -> Iterator[tuple[int, int, bool]]:
        """(start, end, whether it is a sentence), from the first character to the last."""
        at = 0
        for sentence in self.sentences:
            if at < sentence.start:
                yield at, sentence.start, False
            yield sentence.start, sentence.end, True
            at = sentence.end
        if at < len(self.source):
            yield at, len(self.source), False

    def join(self, translations: Sequence[str], language: str | None = None) -> str:
        """The document with translations in place of its sentences.

        language: ISO 639-1 of the translations, which decides how sentences are spaced
        """
        parts: list[str] = []
        at = 0
        for sentence, translation in zip(self.sentences, translations, strict=True):
            gap = self.source[at : sentence.start]
            if sentence.follows and language is not None:
                gap = _spaced(gap, language)
            if sentence.is_cell:
                translation = CELL_RULE.sub(r"\\|", translation)
            parts += [gap, broken(translation, sentence.breaks)]
            at = sentence.end
        return "".join([*parts, self.source[at:]])

    @property
    def is_one_sentence(self) -> bool:
        """Whether the text is a single sentence and whitespace."""
        return len(self.sentences) == 1 and all(
            is_sentence or self.source[start:end].isspace()
            for start, end, is_sentence in self.tiles()
        )

    def coverage(self) -> dict[str, Any]:
        """The share of the source in sentences, from the offsets that tile it."""
        tiles = list(self.tiles())
        assert all(one[1] == other[0] for one, other in pairwise(tiles))
        translated = sum(end - start for start, end, is_sentence in tiles if is_sentence)
        num_kept = sum(end - start for start, end, is_sentence in tiles if not is_sentence)
        assert translated + num_kept == len(self.source)
        return {
            "num_sentences": len(self.sentences),
            "source_characters": len(self.source),
            "translated_characters": translated,
            "kept_characters": num_kept,
        }


def _spaced(gap: str, language: str) -> str:
    if not gap:
        return "" if language in SPACELESS else " "
    return "" if language in SPACELESS and not gap.strip(" ") else gap


def _sentences(
    text: str, run: TextRun, language: str, labels: frozenset[str]
) -> Iterator[Sentence]:
    flat = _flat(text, run)
    spans = find_spans(flat, labels)
    shadow = hidden(flat, spans)
    starts = [span.start for span in spans]
    start, follows = 0, False
    for sentence_end in sentence_ends(shadow, language):
        end = _behind_closing(flat, shadow, spans, starts, start, sentence_end)
        first, last = bisect_left(starts, start), bisect_left(starts, end)
        one, other = _trimmed(flat, shadow, spans[first:last], start, end)
        start = end
        own = [span for span in spans[first:last] if one <= span.start and span.end <= other]
        if is_one := has_letters(flat, one, other, own):
            sentence = _sentence(text, flat, run, own, one, other)
            yield replace(sentence, follows=follows, is_cell=run.is_cell)
        follows = is_one


def _behind_closing(
    flat: str, shadow: str, spans: list[Span], starts: list[int], start: int, end: int
) -> int:
    """The end of a sentence with its closing markup; opening markup belongs to the next one."""
    words = shadow[start:end].rstrip()
    if end == len(flat) or not words:
        return end
    at = start + len(words)
    for span in spans[bisect_left(starts, at) : bisect_left(starts, end)]:
        if span.start != at or OPENS.match(flat, at):
            break
        at = span.end
    return at


def _flat(text: str, run: TextRun) -> str:
    """The run's text with spaces for line breaks, of equal length."""
    parts, at = [], run.start
    for start, end in run.breaks:
        parts += [text[at:start], " " * (end - start)]
        at = end
    return "".join([*parts, text[at : run.end]])


def _trimmed(
    flat: str, shadow: str, spans: Sequence[Span], start: int, end: int
) -> tuple[int, int]:
    """The sentence without surrounding spaces and markup that contains no words."""
    one, other = _stripped(shadow, start, end)
    if all(span.end <= one or other <= span.start for span in spans):
        return one, other
    return _stripped(flat, start, end)


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    part = text[start:end]
    left, right = start + len(part) - len(part.lstrip()), start + len(part.rstrip())
    return (left, right) if left < right else (start, start)


def _sentence(
    text: str, flat: str, run: TextRun, spans: Sequence[Span], start: int, end: int
) -> Sentence:
    words: list[str] = []
    breaks: list[tuple[int, str]] = []
    places = [start]  # of the flat text, from each of which on so many characters were taken out
    removed = [start]
    length, at = 0, start
    first = bisect_right(run.breaks, start + run.start, key=lambda each: each[0])
    last = bisect_left(run.breaks, end + run.start, first, key=lambda each: each[0])
    for one, other in run.breaks[first:last]:
        if other - run.start < end:
            before = flat[at : one - run.start]
            at = other - run.start
            joint = "" if _is_spaceless(before[-1:]) and _is_spaceless(flat[at : at + 1]) else " "
            length += len(before)
            breaks.append((length, text[one:other]))
            length += len(joint)
            words += [before, joint]
            places.append(at)
            removed.append(at - length)
    joined = "".join([*words, flat[at:end]])

    def moved(place: int) -> int:
        return place - removed[bisect_right(places, place) - 1]

    return Sentence(
        start + run.start,
        end + run.start,
        joined,
        tuple(Span(moved(each.start), moved(each.end), each.is_markup) for each in spans),
        tuple((offset / len(joined), written) for offset, written in breaks),
    )


def _is_spaceless(character: str) -> bool:
    return SPACELESS_LETTER.match(character) is not None


def has_letters(text: str, start: int, end: int, spans: Sequence[Span]) -> bool:
    """Whether a range has letters outside of placeholders and markup."""
    at = start
    for span in (*spans, Span(end, end)):
        if any(character.isalpha() for character in text[at : span.start]):
            return True
        at = span.end
    return False


def broken(translation: str, breaks: Sequence[tuple[float, str]]) -> str:
    """The translation on as many lines as its source, broken at spaces near the same places."""
    if not breaks:
        return translation
    parts, at = [], 0
    for share, written in breaks:
        target_end = max(round(share * len(translation)), at)
        after = translation.find(" ", target_end)
        before = translation.rfind(" ", at, target_end)
        near = [each for each in (before, after) if each > at]
        if not near:
            break
        place = min(near, key=lambda each: abs(each - target_end))
        parts += [translation[at:place], written]
        at = place + 1
    return "".join([*parts, translation[at:]])


def fragments(
    text: str, spans: Sequence[Span], written: Mapping[Span, str] | None = None
) -> list[tuple[str, bool]]:
    """The text in parts, and whether each must be translated: the text between spans.

    written: replacements of spans; the other spans stay unchanged
    """
    parts: list[tuple[str, bool]] = []
    verbatim, at = "", 0
    for span in (*spans, Span(len(text), len(text))):
        left, right = _stripped(text, at, span.start)
        # A comma after a placeholder is no beginning that a model knows.
        left = next((each for each in range(left, right) if text[each].isalnum()), right)
        if any(character.isalpha() for character in text[left:right]):
            parts += [(verbatim + text[at:left], False), (text[left:right], True)]
            verbatim, at = "", right
        stays = (written or {}).get(span, span.of(text))
        verbatim += text[at : span.start] + stays
        at = span.end
    return [part for part in (*parts, (verbatim, False)) if part[0]]


def cut(text: str, max_characters: int) -> list[tuple[str, bool]]:
    """A sentence in parts of at most `max_characters`, at word boundaries if there are any."""
    parts: list[tuple[str, bool]] = []
    at = 0
    while len(text) - at > max_characters:
        end = _cut_end(text, at, max_characters)
        parts += _apart(text[at:end])
        at = end
    return [*parts, *_apart(text[at:])]


def _cut_end(text: str, start: int, max_characters: int) -> int:
    """The end of a part: after a comma, else a space, else a word of a script without spaces."""
    least, most = start + max_characters // 2, start + max_characters
    for marks in (COMMAS, " "):
        end = max(text.rfind(mark, least, most) for mark in marks) + 1
        if end > 0 and is_between_graphemes(text, end):
            return end
    end = start + len(pieces(text[start : most + max_characters], max_characters)[0])
    return end if end >= least and end > start else safe_cut(text, start, most)


def _apart(part: str) -> list[tuple[str, bool]]:
    left, right = _stripped(part, 0, len(part))
    pieces = [(part[:left], False), (part[left:right], True), (part[right:], False)]
    return [each for each in pieces if each[0]]
