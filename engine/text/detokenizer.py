"""Detokenizer: token ids to text, for ids beyond the tokenizer's vocabulary too."""

from __future__ import annotations

from typing import Any


def text_of(tokenizer: Any, token_ids: list[int], skip_special_tokens: bool = True) -> str:
    """The text of token ids.

    An embedding is often larger than the vocabulary, so a model may generate an id that has no
    token. Where the tokenizer raises on such ids, they are left out.
    """
    try:
        return str(tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
        known_ids = [each for each in token_ids if knows(tokenizer, each)]
        return str(tokenizer.decode(known_ids, skip_special_tokens=skip_special_tokens))


def knows(tokenizer: Any, token_id: int) -> bool:
    """Whether the tokenizer has a token for the id."""
    try:
        tokenizer.decode([token_id])
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
        return False
    return True


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that are left out of texts: named tokens, such as the end token, and special ones."""
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    marked = (id_ for id_, token in added.items() if getattr(token, "special", False))
    return frozenset([*tokenizer.all_special_ids, *marked])
