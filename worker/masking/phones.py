"""Finds telephone numbers by the numbering plans of all countries, from `phonenumbers`."""

import re
import sys
from collections.abc import Collection, Iterator
from typing import Any

from tasks.errors import SettingsError
from worker.masking.match import Match

# `00` as the international prefix. With a space after it, it may instead end a time or a price, so
# there it must not follow `:`, `.` or `,`.
DIALLED_PLUS = re.compile(r"(?<![\w+])00(?=[1-9])|(?<![\w+:.,])00(?=[ -][1-9])")


class Phones:
    """Finds telephone numbers. `00` before a country code is read as `+`."""

    def __init__(self, regions: Collection[str]) -> None:
        """regions: the countries of numbers without a country code"""
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
            # By default the matcher stops after 65,535 groups of digits that are no telephone
            # number, and the rest of the text would reach the model unmasked.
            for match in self._matcher(dialled, region, max_tries=sys.maxsize):
                is_dialled = dialled[match.start] == "+" != text[match.start]
                yield Match(match.start - is_dialled, match.end, "PHONE")
