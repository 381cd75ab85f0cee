"""Characters that no tokenizer takes and no database keeps."""

from __future__ import annotations


def sanitize(text: str) -> str:
    """The text without NUL, and with U+FFFD for each lone surrogate."""
    text = text.replace("\0", "")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
