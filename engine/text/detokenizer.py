"""Detokenizing: new tokens to text, also where a model knows more tokens than its tokenizer."""

from __future__ import annotations

from typing import Any


def text_of(tokenizer: Any, token_ids: list[int]) -> str:
    """Without special tokens. Embeddings are often rounded up, and a model may say an id that
    stands for nothing: some tokenizers raise on it, and the rest of the answer is there."""
    try:
        return str(tokenizer.decode(token_ids, skip_special_tokens=True))
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
        known = [each for each in token_ids if knows(tokenizer, each)]
        return str(tokenizer.decode(known, skip_special_tokens=True))


def knows(tokenizer: Any, token_id: int) -> bool:
    try:
        tokenizer.decode([token_id])
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
        return False
    return True
