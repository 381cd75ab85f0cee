"""Folding: maps digits, dashes and spaces of all scripts to ASCII, at equal length.

`４１１１` and `٤١١１` are digits of a card number like `4111`, and a number from a web page
may have spaces and dashes of any kind, and invisible characters.
"""

import unicodedata
from functools import cache

# Invisible characters outside category Cf: joiners, fillers and variation selectors.
UNSEEN = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, *range(0x180B, 0x1810)}
UNSEEN |= {*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
DASHES = "\u2212\u00ad"  # minus, soft hyphen; category Pd has the rest


def folded(text: str) -> str:
    """Map the digits, dashes and spaces of all scripts to ASCII; the length stays the same."""
    if text.isascii():
        return text
    for character in set(text):
        if _folded(character) != character:  # few are; `translate` would look up every character
            text = text.replace(character, _folded(character))
    return text


def unseen_in(text: str) -> set[str]:
    """The invisible characters of a text."""
    return set() if text.isascii() else {each for each in set(text) if is_unseen(each)}


@cache
def is_unseen(character: str) -> bool:
    """Whether a character is invisible. A soft hyphen counts as a dash."""
    if character in DASHES:
        return False
    return unicodedata.category(character) == "Cf" or ord(character) in UNSEEN


@cache
def _folded(character: str) -> str:
    if character.isascii():
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    category = unicodedata.category(character)
    if category == "Zs" or is_unseen(character):
        return " "
    if category == "Pd" or character in DASHES:
        return "-"
    plain = unicodedata.normalize("NFKC", character)
    # Full-width, bold and circled forms. A superscript digit is a footnote mark, not a digit.
    return plain if len(plain) == 1 and plain.isascii() and category != "No" else character
