"""Escaping: makes texts of users and models safe for a terminal.

Their texts, names and messages pass through here before they reach a screen, so that none moves the
cursor, changes the title or reverses the line, and characters that the encoding lacks become
escapes.
"""

import codecs
import json
import re
from typing import Any

# C0 and C1 but newline and tab; line and paragraph separators; what turns the direction of
# writing around (embeddings, overrides, isolates, and the deprecated ones); halves of a character.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
# What this command itself writes, in encodings that do not have it.
_PLAIN = {"…": "...", "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "•": "*"}
FALLBACK = "tidemill"  # an error handler, as `backslashreplace` is one


def visible(text: str, encoding: str = "utf-8", *, one_line: bool = False) -> str:
    r"""The text with escapes such as `\x1b` for control characters and for those it cannot show.

    one_line: also escape newlines and tabs
    """
    text = _UNSAFE.sub(_escape, text.replace("\r\n", "\n"))
    if one_line:
        text = text.replace("\n", "\\n").replace("\t", "\\t")
    return text if is_unicode(encoding) else text.encode(encoding, FALLBACK).decode(encoding)


def json_text(value: Any, encoding: str = "utf-8", *, indent: int | None = None) -> str:
    """JSON that is safe for a terminal and that a program parses without loss."""
    text = json.dumps(value, ensure_ascii=not is_unicode(encoding), indent=indent)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def is_unicode(encoding: str) -> bool:
    return encoding.lower().startswith("utf")


def _escape(match: re.Match[str]) -> str:
    return _escaped(match[0])


def _escaped(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def _fall_back(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_PLAIN.get(each) or _escaped(each) for each in missing), error.end


codecs.register_error(FALLBACK, _fall_back)
