"""Measures of a text, each in a few microseconds for a short one. Pure."""

import re
from collections.abc import Sequence
from itertools import islice

# Characters that carry as much information as several letters.
IDEOGRAPH = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
SYLLABLE = re.compile("[\uac00-\ud7a3]")  # Korean
MAX_CHARACTERS = 400_000  # of a text that are looked at
WORDS_TOGETHER = 4
SIGNS_TOGETHER = 8  # in scripts without spaces between words
MAX_WORD_CHARACTERS = 15  # on average; longer ones are no words
MIN_UNITS = 8  # a shorter text repeats nothing
STRETCH = 256  # units, so that a loop at the end of a long text shows
SAME_WORDS = 0.8  # of a sentence's words, at which it counts as left as it was
MIN_SAME_WORDS = 4  # of a sentence that is not left as it was to the letter


def length_of(text: str) -> int:
    """The length in letters, weighted so that scripts are comparable."""
    text = text.strip()
    if text.isascii():
        return len(text)
    return len(text) + 2 * len(IDEOGRAPH.findall(text)) + len(SYLLABLE.findall(text))


def repetition_of(text: str) -> float:
    """The share of repeated word groups in the most repetitive stretch of a text, 0 to 1."""
    text = text[:MAX_CHARACTERS]
    units: Sequence[str] = text.split()
    together = WORDS_TOGETHER
    if len(text) > MAX_WORD_CHARACTERS * len(units):
        units, together = "".join(units), SIGNS_TOGETHER
    if len(units) < max(MIN_UNITS, together + 1):
        return 0.0
    worst = 0.0
    for start in range(0, len(units), STRETCH):
        # A stretch that would be short is joined to the one before.
        stretch = units[max(min(start, len(units) - STRETCH), 0) : start + STRETCH]
        shifted = (islice(stretch, at, None) for at in range(together))
        groups = set(zip(*shifted, strict=False))
        worst = max(worst, 1 - len(groups) / (len(stretch) - together + 1))
    return worst


def is_left_as_it_was(source: str, translation: str) -> bool:
    """Whether a translation equals its source in all but a few words."""
    before, after = source.casefold().split(), translation.casefold().split()
    if before == after:
        return True
    if len(before) < MIN_SAME_WORDS:
        return False
    words_after = set(after)
    return sum(word in words_after for word in before) >= SAME_WORDS * len(before) and (
        len(after) <= 2 * len(before)
    )


def has_words_to_translate(text: str) -> bool:
    """Whether an unchanged translation would be suspicious: a name alone may stay as it is."""
    if len(text.split()) > 1:
        return True
    return len(IDEOGRAPH.findall(text)) > 1
