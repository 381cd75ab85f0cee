"""Tokenizer kind: whether a translator gets the tokenizer that it was made with.

SMaLL-100 has the weights and vocabulary of M2M100, and a tokenizer of its own that puts the
target's code before a text, where M2M100's puts the source's. With the latter, it would answer
in any language.
"""

from __future__ import annotations

from typing import Any

from transformers.models.auto.tokenization_auto import (
    get_tokenizer_config,
    tokenizer_class_from_name,
)

from engine.text.prompts import language_ids


def why_unknown(checkpoint: str, revision: str | None) -> str | None:
    """Why another tokenizer than the checkpoint's own would be loaded, in one sentence; None
    if it would not."""
    said = get_tokenizer_config(checkpoint, revision=revision)
    name = said.get("tokenizer_class")
    if not isinstance(name, str) or "auto_map" in said:
        return None
    bare = name.removesuffix("Fast")
    if any(tokenizer_class_from_name(each) is not None for each in (bare, f"{bare}Fast")):
        return None
    return (
        f"it is a {name}, which transformers does not have, and another might put other "
        "languages before a text"
    )


def why_not_marked(tokenizer: Any) -> str | None:
    """Why the language of a text would not stand in its prompt, though there are codes."""
    ids = language_ids(tokenizer)
    before = getattr(tokenizer, "src_lang", None)
    if not ids or not hasattr(tokenizer, "src_lang"):
        return None
    try:
        for code in sorted(ids)[:2]:
            tokenizer.src_lang = code
            if ids[code] not in tokenizer("")["input_ids"]:
                return "it does not put the code of the source language into a prompt"
    finally:
        if before is not None:
            tokenizer.src_lang = before
    return None
