"""Sentences: where each sentence of a text ends.

`sentencex` finds them. It gets a copy of equal length without the characters on which it panics:
spaces outside ASCII and lone surrogates. Its offsets hold for the text.
"""

import logging
import re
from itertools import pairwise

log = logging.getLogger(__name__)

# A panic of Rust's is no Exception; these are the only others that are none.
NOT_OURS = (KeyboardInterrupt, SystemExit, GeneratorExit)
SPACES = "\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006"
SPACES += "\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
SHADOW = {
    0: "\ufffd",
    **{ord(each): " " for each in SPACES},
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}

WINDOW_CHARACTERS = 20_000

# Sentence ends that the library does not know: Khmer and Tibetan.
OWN_END = re.compile(r"[\u17d4\u17d5]+[\"'\u201d\u00bb)]*\s*|[\u0f0d\u0f0e]+\s+")
# Text that continues the sentence before it, whatever is between.
CONTINUES = re.compile(r"[-\u2010-\u2015,;:\u00ba\u00aa]")
SHORT_WORD = re.compile(r"(?:^|[\s(])[^\W\d_]{1,4}\.$")  # `No. 5`, `p. 12`
QUOTED_ON = re.compile(r"[\u300d\u300f]$")  # Japanese
PARTICLE = re.compile("[とっはがをにで]")
KOREAN_QUOTED_ON = re.compile("[\"'\u201d\u2019]$")
KOREAN_PARTICLE = re.compile("라고|하고|라며|이라")
# Our own rule: punctuation that ends a sentence, its quotes and brackets, and a space.
PLAIN_END = re.compile(
    r"[.!?\u2026\u061f\u06d4\u0964]+[\"'\u201d\u2019)\]]*\s+|[\u3002\uff01\uff1f]+\s*"
)


def shadow_of(text: str) -> str:
    """A copy of the text with equal sentence ends and no characters that break the splitter."""
    return text.translate(SHADOW)


def sentence_ends(text: str, language: str) -> list[int]:
    """The offsets at which sentences end, with the spaces after them; the last is the length.

    language: ISO 639-1 where it has such a code; for an unknown one the common rules are used
    """
    if not text:
        return []
    shadow = shadow_of(text)
    ends = _joined(shadow, _raw_ends(shadow, language))
    assert ends[-1] == len(text)
    return ends


def _raw_ends(shadow: str, language: str) -> list[int]:
    """The sentence ends of the whole text, found window by window.

    The splitter's time grows with the square of a paragraph's length.
    """
    ends: list[int] = []
    start, width = 0, WINDOW_CHARACTERS
    while start < len(shadow):
        window = shadow[start : start + width]
        window_ends = _ends_in(window, language)
        if start + width < len(shadow):
            window_ends = window_ends[:-1]  # the window's own end may cut a sentence
        if not window_ends:
            width *= 2  # one sentence is longer than the window
            continue
        ends += [start + end for end in window_ends]
        start, width = ends[-1], WINDOW_CHARACTERS
    return ends


def _ends_in(shadow: str, language: str) -> list[int]:
    import sentencex

    try:
        parts = sentencex.segment(language, shadow)
    except NOT_OURS:
        raise
    except BaseException as error:
        # The library's better split is lost, but not the job.
        log.warning("sentences split the plain way", extra={"error": type(error).__name__})
        return plain_ends(shadow)
    ends, at = [], 0
    for part in parts:
        at += len(part)
        ends.append(at)
    if "".join(parts) != shadow:
        log.warning("sentences split the plain way", extra={"error": "text lost"})
        return plain_ends(shadow)
    own = [match.end() for match in OWN_END.finditer(shadow)]
    return sorted({*ends, *own}) if own else ends


def plain_ends(text: str) -> list[int]:
    """The sentence ends found by punctuation alone."""
    ends = sorted({match.end() for marks in (PLAIN_END, OWN_END) for match in marks.finditer(text)})
    if not ends or ends[-1] != len(text):
        ends.append(len(text))
    return ends


def _joined(shadow: str, ends: list[int]) -> list[int]:
    """The ends without those that lie within a sentence as a reader sees it."""
    parts = [shadow[start:end].strip() for start, end in pairwise([0, *ends])]
    # If no sentence begins with a capital letter, a lower-case one proves nothing.
    has_capitals = any(part[:1].isupper() for part in parts)
    joined_ends: list[int] = []
    before = ""
    for part, after, end in zip(parts, [*parts[1:], ""], ends, strict=True):
        before = part or before
        if after and before and not _goes_on(before, after, has_capitals):
            joined_ends.append(end)
            before = ""
    return [*joined_ends, len(shadow)]


def _goes_on(before: str, after: str, has_capitals: bool) -> bool:
    if (has_capitals and after[0].islower()) or CONTINUES.match(after):
        return True
    if after[0].isdigit():
        return SHORT_WORD.search(before[-8:]) is not None
    tail = before[-4:]
    if QUOTED_ON.search(tail) and PARTICLE.match(after):
        return True
    return bool(KOREAN_QUOTED_ON.search(tail) and KOREAN_PARTICLE.match(after))
