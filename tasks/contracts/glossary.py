"""Glossary: terms, each with its one translation."""

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from tasks.contracts.contract import clash, storable

MAX_TERMS = 5_000
MAX_TERM_CHARACTERS = 256


def read_glossary(value: Any) -> Any:
    """Parse terms and translations; None: the term is not translated.

    The value is an object of term to translation, or a list of [term, translation]. An error gives
    the number of the faulty entry and not its words, which are a user's.
    """
    if value is None:
        return None
    terms: dict[str, str | None] = {}
    first: dict[str, tuple[int, str | None]] = {}
    for number, (term, translation) in enumerate(_entries(value), start=1):
        term = " ".join(_text(number, term, "term").split())
        if not term:
            raise clash("glossary", f"has no term in entry {number}")
        if translation is not None:
            translation = " ".join(_text(number, translation, "translation").split()) or None
        key = unicodedata.normalize("NFC", term).casefold()
        at, other = first.setdefault(key, (number, translation))
        if other != translation:
            raise clash(
                "glossary",
                f"has two translations for one term, in entries {at} and {number} "
                "(terms that differ only in case are one); keep one of them",
            )
        if at == number:
            terms[term] = translation
        if number > MAX_TERMS:
            raise clash("glossary", f"has more than {MAX_TERMS} terms; leave some out")
    return terms or None


def _entries(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        for number, entry in enumerate(value, start=1):
            if not isinstance(entry, list | tuple) or len(entry) != 2:
                raise clash("glossary", f"has no [term, translation] in entry {number}")
            yield entry[0], entry[1]
    else:
        raise clash("glossary", "must be an object of term to translation")


def _text(number: int, value: Any, part: str) -> str:
    if not isinstance(value, str):
        raise clash("glossary", f"has a {part} that is no text in entry {number}")
    if len(value) > MAX_TERM_CHARACTERS:
        raise clash(
            "glossary",
            f"has a {part} of {len(value)} characters in entry {number}; at most "
            f"{MAX_TERM_CHARACTERS} are taken",
        )
    stored: str = storable(value)
    return stored


Glossary = Annotated[dict[str, str | None] | None, BeforeValidator(read_glossary)]
