"""Finds telephone numbers by the numbering plans of all countries, as `phonenumbers` has them."""

import re
import sys
from collections.abc import Collection, Iterator
from typing import Any

from tasks.errors import SettingsError
from worker.masking.match import Match

# A time or a price may end so, before another number.
DIALLED_PLUS = re.compile(r"(?<![\w+])00(?=[1-9])|(?<![\w+:.,])00(?=[ -][1-9])")


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
        self._matcher: Any = phonenumbers.PhoneNumberMatcher
        self._regions: list[str | None] = [*sorted(regions)] or [None]

    def find(self, text: str) -> Iterator[Match]:
        dialled = DIALLED_PLUS.sub(" +", text)
        for region in self._regions:
            # By default the matcher stops after 65,535 groups of digits that are no number, and
            # the rest of the text would go to the model as it is.
            for match in self._matcher(dialled, region, max_tries=sys.maxsize):
                is_dialled = dialled[match.start] == "+" != text[match.start]
                yield Match(match.start - is_dialled, match.end, "PHONE")
