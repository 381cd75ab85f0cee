"""Languages: from a user's language code to what a checkpoint calls the language.

A user writes `fr`, `zh-TW` or the checkpoint's own code. Checkpoints write `fr` (M2M100),
`fra_Latn` (NLLB), `fr_XX` (mBART) or `>>fra<<` (Marian), and T5 wants to read `French`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

import langcodes

from engine.errors import UnknownLanguage

# In the units of `langcodes`: the same language in another region or usual script is
# within 5, a neighbouring language (Bosnian for Croatian) begins at 8.
MAX_DISTANCE = 5


class Languages:
    """The languages of one checkpoint, narrowed to `allowed` (users' codes) if it is given."""

    def __init__(self, own: Iterable[str], allowed: Iterable[str] = ()) -> None:
        self.own: Mapping[str, str] = {standard_tag(code): code for code in own}
        self.codes = frozenset(self.own.values())
        self.allowed = {standard_tag(code): code for code in allowed}

    def own_code(self, name: str, language: str | None) -> str:
        """The checkpoint's code for a user's. `name` is the parameter. Raises UnknownLanguage."""
        if language is None or not self._is_allowed(language):
            raise UnknownLanguage(name, language, self.known)
        if language in self.codes:
            return language
        tag = closest(language, tuple(self.own))
        if tag is None:
            raise UnknownLanguage(name, language, self.known)
        return self.own[tag]

    def english_name(self, name: str, language: str | None) -> str:
        """`French` for `fr`, for checkpoints that are told in words. Raises UnknownLanguage."""
        if language is None or not self._is_allowed(language) or not is_language(language):
            raise UnknownLanguage(name, language, self.known or ("any ISO 639 code",))
        return langcodes.Language.get(standard_tag(language)).display_name("en")

    @property
    def known(self) -> frozenset[str]:
        return frozenset(self.allowed.values()) or self.codes

    def _is_allowed(self, language: str) -> bool:
        return not self.allowed or closest(language, tuple(self.allowed)) is not None


def standard_tag(code: str) -> str:
    """`fra-Latn` for `fra_Latn`, `fr` for `fr_XX`, `fra` for `>>fra<<`."""
    bare = code.strip("<>_")
    return re.sub(r"_XX$", "", bare).replace("_", "-")


@lru_cache(maxsize=4096)
def is_language(code: str) -> bool:
    try:
        return langcodes.Language.get(standard_tag(code)).is_valid()
    except ValueError:
        return False


@lru_cache(maxsize=4096)
def closest(language: str, tags: tuple[str, ...]) -> str | None:
    """The tag of the same language; None if there is none. Tags are compared as they are
    first, for checkpoints have codes that no standard knows."""
    wanted = standard_tag(language)
    if wanted in tags:
        return wanted
    if not is_language(wanted):
        return None
    valid = [each for each in tags if is_language(each)]
    found, _ = langcodes.closest_match(wanted, valid, max_distance=MAX_DISTANCE)
    return None if found == "und" else found
