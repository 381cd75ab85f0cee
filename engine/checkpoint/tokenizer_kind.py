"""Tokenizer kind: refuses a translator whose tokenizer would be replaced by another kind.

SMaLL-100 has the weights and vocabulary of M2M100, but its own tokenizer puts the code of the
target language before a text, where M2M100's puts that of the source. With M2M100's it would answer
in an arbitrary language.
"""

from __future__ import annotations

from typing import Any

from transformers.models.auto.tokenization_auto import (
    get_tokenizer_config,
    tokenizer_class_from_name,
)

from engine.text.prompts import language_ids


def why_unknown(checkpoint: str, revision: str | None) -> str | None:
    """The reason that a wrong tokenizer would be loaded, in one sentence; None if it would not."""
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
    """The reason that a prompt would not name the language of its text; None if it does."""
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
