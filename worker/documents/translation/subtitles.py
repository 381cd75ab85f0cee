"""Subtitles (SubRip, WebVTT): the text of each cue; times and numbers stay unchanged."""

import re
from collections.abc import Iterator
from itertools import pairwise

from worker.documents.translation.layout import LINE_ENDS, TextRun, lines_of

_TIME = r"(?:\d{1,4}:)?\d{1,2}:\d{2}[.,]\d{1,3}"
TIMING = re.compile(rf"[ \t]*{_TIME}[ \t]*-->[ \t]*{_TIME}")
BEGINNING = re.compile(
    rf"\ufeff?\s*(?:WEBVTT(?:[ \t]|$)|(?:\d+\s*\n\s*)?{_TIME}[ \t]*-->)", re.MULTILINE
)
NOT_SPOKEN = re.compile(r"(?:NOTE|STYLE|REGION)(?:[ \t]|$)")  # WebVTT's blocks that are no cues
SPEAKER = re.compile(r"\s*[-\u2013\u2014][ \t]*")


def is_subtitles(text: str) -> bool:
    """Whether a text begins as a subtitle file does."""
    return BEGINNING.match(text[:1000]) is not None


def has_cues(text: str) -> bool:
    return any(TIMING.match(text, start) for start, _ in lines_of(text))


def cue_runs(text: str) -> Iterator[TextRun]:
    """The text of each cue, one run for each speaker. Line breaks in a cue mean only a space."""
    lines = [
        (start, end, text[start:end].strip(f"\ufeff{LINE_ENDS}")) for start, end in lines_of(text)
    ]
    is_cue = is_aside = False
    speech: list[tuple[int, int]] = []
    for at, (start, end, content) in enumerate(lines):
        is_blank = not content.strip()
        if TIMING.match(content) or (at + 1 < len(lines) and TIMING.match(lines[at + 1][2])):
            # The line before a time is the cue's number or name.
            yield from _run(speech)
            speech, is_cue, is_aside = [], True, False
        elif is_blank:
            yield from _run(speech)
            speech, is_aside = [], False
        elif is_aside or (not speech and NOT_SPOKEN.match(content)):
            is_aside = True
        elif is_cue:
            if (speaker := SPEAKER.match(text, start, end)) is not None:
                yield from _run(speech)
                speech, start = [], speaker.end()
            words = text[start:end].strip()
            if words:
                start = text.index(words, start)
                speech.append((start, start + len(words)))
    yield from _run(speech)


def _run(speech: list[tuple[int, int]]) -> Iterator[TextRun]:
    if speech:
        breaks = tuple((one[1], other[0]) for one, other in pairwise(speech))
        yield TextRun(speech[0][0], speech[-1][1], breaks)
