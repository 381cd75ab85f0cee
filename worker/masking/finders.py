"""Finders: the rules that find personal data, by its form only.

They do not find names: see docs/masking.md.

All our patterns are bounded, so that no text takes quadratic time.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from tasks.configuration.masking import MaskingRules
from tasks.errors import SettingsError
from worker.documents.translation.placeholders import Span, blanked
from worker.errors import PatternTooSlow
from worker.masking.addresses import Emails, IpAddresses, UrlSecrets
from worker.masking.folding import folded, unseen_in
from worker.masking.match import Finder, Match, matches_of
from worker.masking.numbers import Cards, Ibans
from worker.masking.phones import Phones

__all__ = ["Finder", "Match", "compiled", "finders_of"]


@dataclass(frozen=True, slots=True)
class Forms:
    """Finds matches of the built-in rules, in the digits of all scripts.

    The text is searched twice: without its invisible characters, and then, outside of the matches,
    with spaces in their place.
    """

    rules: tuple[Finder, ...]

    def find(self, text: str) -> list[Match]:
        unseen = unseen_in(text)
        if not unseen:
            return matches_of(self.rules, folded(text))
        places = [place for place, character in enumerate(text) if character not in unseen]
        seen = folded("".join(text[place] for place in places))
        matches = [
            Match(places[each.start], places[each.end - 1] + 1, each.kind)
            for each in matches_of(self.rules, seen)
        ]
        rest = blanked(folded(text), [Span(each.start, each.end) for each in matches])
        return sorted([*matches, *matches_of(self.rules, rest)])


@dataclass(frozen=True, slots=True)
class OwnPattern:
    """A finder of an operator's regular expression, bounded in time: `(a+)+$` could take years."""

    kind: str
    pattern: str

    def find(self, text: str) -> Iterator[Match]:
        seconds = PATTERN_SECONDS + len(text) * PATTERN_SECONDS_PER_CHARACTER
        try:
            for found in compiled(self.pattern).finditer(text, timeout=seconds):
                if found.end() > found.start():
                    yield Match(found.start(), found.end(), self.kind)
        except TimeoutError:
            raise PatternTooSlow(self.kind, len(text), seconds) from None


PATTERN_SECONDS = 1.0
PATTERN_SECONDS_PER_CHARACTER = 2e-6


@cache
def compiled(pattern: str) -> Any:
    # Python's `re` has no time limit.
    import regex

    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise SettingsError(f"masking: {pattern!r} is no regular expression: {error}") from None


def finders_of(rules: MaskingRules) -> tuple[Finder, ...]:
    """The finders of the rules, in order of precedence.

    Raises SettingsError.
    """
    own = [OwnPattern(kind, pattern) for kind, pattern in rules.patterns]
    for each in own:
        compiled(each.pattern)
    by_rule: dict[str, Callable[[], Finder]] = {
        "url_secret": UrlSecrets,
        "iban": Ibans,
        "card": Cards,
        "email": Emails,
        "ip": IpAddresses,
        "phone": lambda: Phones(rules.phone_regions),
    }
    forms = tuple(make() for rule, make in by_rule.items() if rule in rules.rules)
    return (*own, *([Forms(forms)] if forms else []), *map(plugged_in, rules.finders))


def plugged_in(name: str) -> Finder:
    """Load the object named "module:object"; raises SettingsError."""
    module, _, attribute = name.partition(":")
    try:
        finder = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"masking: the finder {name} cannot be imported: {error}") from None
    if not callable(getattr(finder, "find", None)):
        raise SettingsError(f"masking: the finder {name} has no method `find`")
    return finder  # type: ignore[no-any-return]
