"""Sanitizing: removes the characters that tokenizers and databases reject."""

from __future__ import annotations


def sanitize(text: str) -> str:
    """Return the text without NUL, and with U+FFFD in place of each lone surrogate."""
    text = text.replace("\0", "")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
