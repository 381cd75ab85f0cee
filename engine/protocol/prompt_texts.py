"""Prompt texts for instruction models, versioned.

`[prompts]` in `tidemill.toml` overrides each by its name, `[models.ALIAS.prompts]` for one model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

VERSION = "1"  # raise it with every change of a text below: results name it
OPTIONS = {
    "style": "summarize_style",
    "focus": "summarize_focus",
    "output_language": "summarize_language",
}
# Each with the names that it may hold. {options} are the sentences of the job's options.
PLACEHOLDERS = {
    "summarize": ("text", "options"),
    "summarize_style": ("style",),
    "summarize_focus": ("focus",),
    "summarize_language": ("output_language",),
    "translate": ("text", "source_language", "target_language"),
}
PROMPTS = {
    "summarize": "Summarize the following text in a few sentences.{options}\n\n{text}",
    "summarize_style": "Write the summary in this style: {style}.",
    "summarize_focus": "Pay attention above all to: {focus}.",
    "summarize_language": "Write the summary in {output_language}.",
    "translate": (
        "Translate the following text from {source_language} to {target_language}. "
        "Answer with the translation only.\n\n{text}"
    ),
}


def fault_of(prompts: Mapping[str, str]) -> str | None:
    """The fault of prompt texts from the configuration; None if there is none."""
    for name, text in prompts.items():
        if name not in PROMPTS:
            return f"{name} is not one of {', '.join(PROMPTS)}"
        allowed = PLACEHOLDERS[name]
        in_words = ", ".join(f"{{{each}}}" for each in allowed)
        try:
            text.format_map(dict.fromkeys(allowed, ""))
        except (KeyError, ValueError, IndexError, AttributeError):
            return f"{name} cannot be filled in; it may hold {in_words}"
        if f"{{{allowed[0]}}}" not in text:
            return f"{name} has no {{{allowed[0]}}}"
    return None


def version_of(prompts: Mapping[str, str]) -> str:
    """The version of the prompt texts: `1`, or `1+3f2a90bc` with a digest of overriding texts."""
    if not prompts:
        return VERSION
    text = json.dumps(dict(prompts), sort_keys=True)
    return f"{VERSION}+{hashlib.sha256(text.encode()).hexdigest()[:8]}"
