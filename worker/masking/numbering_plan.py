"""Numbering plans: rule out groups of digits that cannot be telephone numbers.

`phonenumbers` takes about 50 microseconds to parse a group, and a text of a million digits has
hundreds of thousands of them. Most are ruled out here first, by necessary conditions from its own
metadata. Any group that is not ruled out for certain is left to `phonenumbers`.
"""

import re
from functools import cache, cached_property
from typing import Any

# Signs of an extension or a format of its own, which are left to `phonenumbers`.
UNSURE = re.compile(r"[^\W\d_]|[#~;:=,\uff03\uff5e]")
BEGINS_WITH_PLUS = re.compile(r"[^0-9+\uff0b]*[+\uff0b]")
NO_DIGITS = re.compile(r"[^0-9]+")
FIRST_GROUP_ONLY = re.compile(r"\(?(?:\\|\$)1\)?")
MAX_DIGITS = 60  # far more than any prefixes and a number have
MIN_DIGITS_ABROAD = 6  # including the international prefix
MAX_CODE = 3  # digits of a country code
# The types of number; a valid number has at least one of them.
KINDS = (
    *("fixed_line", "mobile", "toll_free", "premium_rate", "shared_cost"),
    *("personal_number", "voip", "pager", "uan", "voicemail"),
)


class NumberingPlan:
    """The conditions on numbers of a region; None: every number needs a country code."""

    def __init__(self, region: str | None) -> None:
        import phonenumbers

        self.region = region
        if region is None:
            return
        code = phonenumbers.country_code_for_region(region)
        plans = _plans_of(code)
        self._country = _countries()[str(code)]
        # The plans of the region itself and of the main region of its country code.
        own = [phonenumbers.PhoneMetadata.metadata_for_region(region), plans[0]]
        self._abroad = _either([each.international_prefix for each in own])
        self._prefix = _either([str(code), *(each.national_prefix_for_parsing for each in own)])
        # If an area code may be left out, the number is longer than its written digits.
        self._adds_digits = any(each.national_prefix_transform_rule for each in own)
        lengths = {each for plan in plans for each in plan.general_desc.possible_length}
        self._min_digits = 2 if self._adds_digits else min(lengths)
        shortest = min(self._min_digits, MIN_DIGITS_ABROAD)
        self.shortest = re.compile(rf"(?:[0-9]\S*?){{{shortest}}}")  # a word with enough digits
        formats = plans[0].number_format
        self._needs_prefix = [_needs_prefix(each) for each in formats]
        self._formats = _either(
            [f"{_leading(each)}(?P<f{n}>{each.pattern}\\Z)" for n, each in enumerate(formats)]
        )

    def rules_out(self, group: str) -> bool:
        """Whether a group of digits and separators certainly is no number."""
        has_plus = BEGINS_WITH_PLUS.match(group) is not None
        if self.region is None and not has_plus:
            return True
        if UNSURE.search(group) or not group.isascii():
            return False
        digits = NO_DIGITS.sub("", group)
        if len(digits) > MAX_DIGITS:
            return True
        if has_plus:
            return self._rules_out_abroad(digits)
        if self._abroad.match(digits):
            return False
        if len(digits) < self._min_digits:
            return True
        if self._prefix.match(digits):
            return not (self._adds_digits or self._country.may_end_with_one(digits))
        # No prefix is stripped, so the digits are the whole number; and they are refused if the
        # number's format requires a prefix.
        if not self._country.may_be_one(digits):
            return True
        found = self._formats.match(digits)
        return found is not None and self._needs_prefix[int(str(found.lastgroup)[1:])]

    def _rules_out_abroad(self, digits: str) -> bool:
        """The same for digits after a plus."""
        countries = _countries()
        for length in range(1, MAX_CODE + 1):
            if (country := countries.get(digits[:length])) is not None:
                rest = digits[length:]
                return not (country.adds_digits or country.may_end_with_one(rest))
        return self.region is None  # else it is parsed once more without the plus


class Country:
    """The numbers of a country code, which several regions may share."""

    def __init__(self, code: int) -> None:
        self._code = code

    @cached_property
    def adds_digits(self) -> bool:
        """Whether parsing may add digits to a number of this code."""
        return bool(_plans_of(self._code)[0].national_prefix_transform_rule)

    def may_be_one(self, digits: str) -> bool:
        return self._number.match(digits) is not None

    def may_end_with_one(self, digits: str) -> bool:
        """Whether the digits are a number after some of the first are stripped as a prefix."""
        return self._end.match(digits) is not None

    @cached_property
    def _numbers(self) -> str:
        kinds = [getattr(plan, kind) for plan in _plans_of(self._code) for kind in KINDS]
        patterns = dict.fromkeys(each.national_number_pattern for each in kinds if each is not None)
        return "|".join(f"(?:{each})" for each in patterns if each) or "(?!)"

    @cached_property
    def _number(self) -> re.Pattern[str]:
        return re.compile(f"(?:{self._numbers})\\Z")

    @cached_property
    def _end(self) -> re.Pattern[str]:
        return re.compile(f"[0-9]*?(?:{self._numbers})\\Z")


@cache
def _countries() -> dict[str, Country]:
    """The countries by their codes."""
    import phonenumbers

    return {str(code): Country(code) for code in phonenumbers.COUNTRY_CODE_TO_REGION_CODE}


def _plans_of(code: int) -> list[Any]:
    """The plans of the regions that share a country code, the main region first."""
    import phonenumbers

    return [
        phonenumbers.PhoneMetadata.metadata_for_region_or_calling_code(code, region)
        for region in phonenumbers.COUNTRY_CODE_TO_REGION_CODE[code]
    ]


def _either(patterns: list[str | None]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{each})" for each in patterns if each) or "(?!)")


def _leading(number_format: Any) -> str:
    patterns = number_format.leading_digits_pattern
    return f"(?={patterns[-1]})" if patterns else ""


def _needs_prefix(number_format: Any) -> bool:
    """Whether a number of this format must be written with a national prefix."""
    rule = number_format.national_prefix_formatting_rule
    is_optional = number_format.national_prefix_optional_when_formatting
    return bool(rule) and not is_optional and not FIRST_GROUP_ONLY.fullmatch(rule)
