"""Finds telephone numbers by the numbering plans of all countries, with `phonenumbers`."""

import re
import sys
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

from tasks.errors import SettingsError
from worker.masking.match import Match
from worker.masking.numbering_plan import NumberingPlan

PLUS = re.compile(r"[+\uff0b]")
# `00` followed by a space may also be the end of a time or a price.
DIALLED_PLUS = re.compile(r"(?<![\w+])00(?=[1-9])|(?<![\w+:.,])00(?=[ -][1-9])")
# Separators other than spaces that `phonenumbers` splits a candidate at, extensions, and an hour at
# its end, which may belong to a timestamp.
OTHER_CUTS = re.compile(
    r"[/(\[.\uff08\uff3b\uff0f\u2012-\u2015\uff0d]|\s-|-\s|[^\W\d_]|[#~;:=,]| [0-2][0-9]\Z"
)
WORD = re.compile(r"\S*[\w#]")  # without trailing punctuation
NUM_BEHIND = 3  # characters after a candidate that matter: `:30` after a date and an hour


class Phones:
    """Finds phone numbers. `00` before a country code counts as `+`."""

    def __init__(self, regions: Collection[str]) -> None:
        """regions: of numbers without a country code"""
        try:
            import phonenumbers
        except ImportError:
            raise SettingsError(
                'masking: the rule "phone" needs phonenumbers; install it with: '
                'pip install "tidemill[masking]"'
            ) from None
        for region in regions:
            if region not in phonenumbers.SUPPORTED_REGIONS:
                raise SettingsError(f"masking: {region} is no region that has telephone numbers")
        named: list[str | None] = [*sorted(regions)]
        self._plans = [NumberingPlan(region) for region in named or [None]]
        self._matcher = matcher_type()

    def find(self, text: str) -> Iterator[Match]:
        dialled = DIALLED_PLUS.sub(" +", text)
        for plan in self._plans:
            for match in self._matcher(dialled, plan):
                is_dialled = dialled[match.start] == "+" != text[match.start]
                yield Match(match.start - is_dialled, match.end, "PHONE")


@cache
def matcher_type() -> Any:
    """The matcher of `phonenumbers`, made faster.

    It finds the same numbers. It overrides private methods; should a later version rename them, it
    would only be slow again.
    """
    import phonenumbers

    class BoundedMatcher(phonenumbers.PhoneNumberMatcher):
        def __init__(self, text: str, plan: NumberingPlan) -> None:
            # By default it gives up on a text after 65,535 groups that are no numbers.
            super().__init__(text, plan.region, max_tries=sys.maxsize)
            self._plan = plan

        def _extract_match(self, candidate: str, offset: int) -> Any:
            """The first number within a candidate, a range of digits and separators."""
            if self._plan.region is None and not PLUS.search(candidate):
                return None
            if not OTHER_CUTS.search(candidate) and self._plan.rules_out(candidate):
                return self._first_word(candidate, offset)
            # Only a window, since the base class copies the rest of the text after each timestamp.
            text, begin = self.text, max(offset - 1, 0)
            self.text = text[begin : offset + len(candidate) + NUM_BEHIND]
            try:
                match = super()._extract_match(candidate, offset - begin)
            finally:
                self.text = text
            if match is not None:
                match.start += begin
                match.end += begin
            return match

        def _first_word(self, candidate: str, offset: int) -> Any:
            """The same for a candidate that is no number as a whole, separated by spaces only."""
            if not PLUS.search(candidate) and not self._plan.shortest.search(candidate):
                return None
            for word in WORD.finditer(candidate):
                if not self._plan.rules_out(word.group()):
                    match = self._parse_and_verify(word.group(), offset + word.start())
                    if match is not None:
                        return match
            return None

        def _parse_and_verify(self, candidate: str, offset: int) -> Any:
            if self._plan.rules_out(candidate):
                return None
            return super()._parse_and_verify(candidate, offset)

    return BoundedMatcher
