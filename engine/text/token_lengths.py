"""PrefixBound: whether a long text has more tokens than a limit, seen from its beginning."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from typing import Any

WORD_MARKS = ("\u2581", "\u0120", " ")  # a space in SentencePiece, in byte-level BPE, as it is
CHARACTERS_PER_TOKEN = 8  # more than is usual, so that the first prefix mostly decides
# What the end of a prefix may change: special tokens, and a space that a normalizer joins.
MARGIN_TOKENS = 32
MIN_CHARACTERS = 16_384  # below, a text is tokenized whole in a few milliseconds
WORD_END = re.compile(r"\S(?= \S)")


class PrefixBound:
    """Counts the tokens of a prefix that ends where a word does.

    No token reaches over such a place if no entry of the vocabulary has a space behind
    another character. Then the tokens of the prefix are the first tokens of the whole, and
    a prefix that is too long proves that the text is. Vocabularies of another kind prove
    nothing, and their texts are tokenized whole.
    """

    def __init__(self, tokenizer: Any, max_tokens: int | None) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    def exceeded_by(self, text: str, num_tokens: Callable[[str], int]) -> int | None:
        """How many tokens `text` has at the least, if these are more than the limit."""
        if self.max_tokens is None or len(text) < MIN_CHARACTERS or not self.words_end_tokens:
            return None
        enough = self.max_tokens + MARGIN_TOKENS
        num_characters = max(enough * CHARACTERS_PER_TOKEN, MIN_CHARACTERS)
        while num_characters < len(text) // 2:
            end = WORD_END.search(text, num_characters, min(2 * num_characters, len(text)))
            if end is not None:
                num = num_tokens(text[: end.end()])
                if num > enough:
                    return num - MARGIN_TOKENS
            num_characters *= 2
        return None

    @cached_property
    def words_end_tokens(self) -> bool:
        entries = self.tokenizer.get_vocab()
        has_mark = any(mark in entries for mark in WORD_MARKS)
        return has_mark and not any(holds_space_within(entry) for entry in entries)


def holds_space_within(entry: str) -> bool:
    bare = entry.lstrip("".join(WORD_MARKS))
    return any(mark in bare for mark in WORD_MARKS)
