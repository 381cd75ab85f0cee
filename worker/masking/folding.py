"""Folding: maps digits, dashes and spaces of all scripts to ASCII, at equal length.

`４１１１` and `٤١١١` are digits of a card number like `4111`, and a number from a web page
may have spaces and dashes of any kind.
"""

import unicodedata
from functools import cache

FULL_WIDTH = range(0xFF01, 0xFF5F)  # the forms of `!` to `~` in East Asian print
WITHOUT_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"
DASHES = "\u2212\u00ad"  # minus, soft hyphen; category Pd has the rest


def folded(text: str) -> str:
    if text.isascii():
        return text
    for character in set(text):
        if _folded(character) != character:  # few are; `translate` would look at every place
            text = text.replace(character, _folded(character))
    return text


@cache
def _folded(character: str) -> str:
    if character.isascii():
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if ord(character) in FULL_WIDTH:
        return chr(ord(character) - FULL_WIDTH.start + ord("!"))
    category = unicodedata.category(character)
    if category == "Zs" or character in WITHOUT_WIDTH:
        return " "
    return "-" if category == "Pd" or character in DASHES else character
