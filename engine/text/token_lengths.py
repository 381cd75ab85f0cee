"""PrefixBound: whether a text has more tokens than a model takes, without tokenizing all of it.

A tokenizer call cannot be interrupted and takes a second or more for a million characters, so one
long text could delay all others. A long text is therefore counted first, slice by slice with a
pause after each, and only until it is known to be too long.
"""

from __future__ import annotations

from collections.abc import Callable

# A text of no more is tokenized without being counted: some milliseconds.
MIN_CHARACTERS = 16_384
# For a model with a high limit the bound is higher, since most texts are within it.
CHARACTERS_PER_TOKEN = 8
MAX_UNCOUNTED_CHARACTERS = 65_536
SLICE_CHARACTERS = 8192
# How far before the end of a slice a space is looked for, so that few words are cut.
WORD_CHARACTERS = 1024
# Cutting a text changes the tokens near the cut: a word falls into other pieces, a space or a
# combining character is joined to nothing. So each slice counts for less than it has.
MARGIN_TOKENS = 128
MARGIN_SHARE = 0.1
# A text may have few tokens for its length: spaces that a normalizer joins, characters that a
# vocabulary lacks. Within the first or the second bound it is tokenized, beyond both refused.
MAX_CHARACTERS_PER_TOKEN = 16
MAX_SPARSE_CHARACTERS = 262_144


def no_pause() -> None:
    """Do nothing between two slices."""


class PrefixBound:
    """Bounds the work on one text by the number of tokens that the model takes."""

    def __init__(self, max_tokens: int) -> None:
        """max_tokens: of a prompt"""
        self.max_tokens = max_tokens
        uncounted = max(max_tokens * CHARACTERS_PER_TOKEN, MIN_CHARACTERS)
        self.max_uncounted = min(uncounted, MAX_UNCOUNTED_CHARACTERS)
        self.max_characters = max(max_tokens * MAX_CHARACTERS_PER_TOKEN, MAX_SPARSE_CHARACTERS)

    def least_tokens(
        self,
        text: str,
        count_tokens: Callable[[str], int],
        between_slices: Callable[[], None] = no_pause,
    ) -> int:
        """A lower bound of the tokens of `text`; 0 if it is short enough to tokenize at once.

        Counting ends above `max_tokens` and at `max_characters`.

        count_tokens:   returns the number of tokens of a slice, without special ones
        between_slices: called after each slice; may raise to abandon the text
        """
        if len(text) <= self.max_uncounted:
            return 0
        at, least = 0, 0
        while at < min(len(text), self.max_characters) and least <= self.max_tokens:
            end = slice_end(text, at)
            num_tokens = count_tokens(text[at:end])
            least += max(int((1 - MARGIN_SHARE) * num_tokens) - MARGIN_TOKENS, 0)
            between_slices()
            at = end
        return least


def slice_end(text: str, begin: int) -> int:
    """The end of the slice that starts at `begin`: after a word, if one ends nearby."""
    end = begin + SLICE_CHARACTERS
    if end >= len(text):
        return len(text)
    space = text.rfind(" ", end - WORD_CHARACTERS, end)
    return end if space < 0 else space
