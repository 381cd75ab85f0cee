"""Telephone numbers, by the numbering plans of all countries, as `phonenumbers` has them."""

import re
import sys
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

from tasks.errors import SettingsError
from worker.masking.match import Match
from worker.masking.numbering_plan import NumberingPlan

PLUS = re.compile(r"[+\uff0b]")
# A time or a price may end so, before another number.
DIALLED_PLUS = re.compile(r"(?<![\w+])00(?=[1-9])|(?<![\w+:.,])00(?=[ -][1-9])")
# What a candidate is cut at other than spaces; and an hour at its end, which may be a date's.
OTHER_CUTS = re.compile(
    r"[/(\[.\uff08\uff3b\uff0f\u2012-\u2015\uff0d]|\s-|-\s|[^\W\d_]|[#~;:=,]| [0-2][0-9]\Z"
)
WORD = re.compile(r"\S*[\w#]")  # without the signs behind it
NUM_BEHIND = 3  # characters behind a candidate that are looked at: `:30` behind a date and an hour


class Phones:
    """Finds phone numbers. `00` before a country's code is its `+`, as it is dialled."""

    def __init__(self, regions: Collection[str]) -> None:
        """regions: of numbers without a country's code"""
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
    """The matcher of `phonenumbers`, but in bounded time.

    What it finds is the same, and would be in a version in which these methods of its own are
    called otherwise: it would only take longer again.
    """
    import phonenumbers

    class BoundedMatcher(phonenumbers.PhoneNumberMatcher):
        def __init__(self, text: str, plan: NumberingPlan) -> None:
            # By itself it gives up on a text in which 65,535 groups turned out to be none.
            super().__init__(text, plan.region, max_tries=sys.maxsize)
            self._plan = plan

        def _extract_match(self, candidate: str, offset: int) -> Any:
            """The first number in a range of digits and what stands between them."""
            if self._plan.region is None and not PLUS.search(candidate):
                return None
            if not OTHER_CUTS.search(candidate) and self._plan.rules_out(candidate):
                return self._first_word(candidate, offset)
            # All that follows would be copied for each candidate that looks like a date.
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
            """The same where it is cut by spaces only, and no number as a whole."""
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
