"""Telephone numbers are those that `phonenumbers` finds, in bounded time."""

import sys
from itertools import chain

import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.masking.numbering_plan import NumberingPlan
from worker.masking.phones import Phones, matcher_type

REGIONS = (None, "DE", "US", "GB", "FR", "IT", "AR", "BR", "JP", "SM", "AG", "GG", "CI", "VN", "SG")
PLANS = {region: NumberingPlan(region) for region in REGIONS}
FORMATS = phonenumbers.PhoneNumberFormat
WRITTEN = sorted(
    {
        written
        for region in (*REGIONS[1:], "CH", "IN", "TK", "CA")
        for kind in range(4)
        if (number := phonenumbers.example_number_for_type(region, kind)) is not None
        for written in (
            phonenumbers.format_number(number, FORMATS.E164),
            phonenumbers.format_number(number, FORMATS.INTERNATIONAL),
            phonenumbers.format_number(number, FORMATS.NATIONAL),
            phonenumbers.national_significant_number(number),
            phonenumbers.format_out_of_country_calling_number(number, "DE"),
        )
    }
)
BETWEEN = ("+", "00", "0", "-", " - ", " ", "  ", "      ", "/", " / ", "(", ")", ".", ". ", ", ")
BETWEEN += ("x", " ext. 5", "#", ";ext=5", ":30", "2012-01-02 08", "3/10/2011", "\n", "%", "a", "~")
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(WRITTEN), st.text("0123456789", max_size=14), st.sampled_from(BETWEEN)
    ),
    max_size=12,
).map("".join)


def plainly_found(text: str, region: str | None) -> list[tuple[int, int]]:
    matcher = phonenumbers.PhoneNumberMatcher(text, region, max_tries=sys.maxsize)
    return [(each.start, each.end) for each in matcher]


def found(text: str, region: str | None) -> list[tuple[int, int]]:
    return [(each.start, each.end) for each in matcher_type()(text, PLANS[region])]


@settings(max_examples=400, deadline=None)
@given(text=TEXTS, region=st.sampled_from(REGIONS))
def test_the_numbers_found_are_those_of_phonenumbers(text: str, region: str | None) -> None:
    assert found(text, region) == plainly_found(text, region)


@pytest.mark.parametrize("region", REGIONS)
def test_every_way_to_write_a_number_is_found_as_before(region: str | None) -> None:
    for text in (*WRITTEN, ", ".join(WRITTEN), "\n".join(WRITTEN), " ".join(WRITTEN)):
        assert found(text, region) == plainly_found(text, region)


def counted_parses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The groups that are read as numbers, each of which takes some 50 microseconds."""
    parsed: list[str] = []
    parse = phonenumbers.phonenumbermatcher.parse

    def counted(number: str, *arguments: object, **named: object) -> object:
        parsed.append(number)
        return parse(number, *arguments, **named)

    monkeypatch.setattr(phonenumbers.phonenumbermatcher, "parse", counted)
    return parsed


SIZE = 100_000  # characters of a text
DIGITS = "31415926535897932384626433832795028841971693993751058209749445923078164062862"


def groups(size: int, between: str) -> str:
    """Digits in groups, of which few are a number."""
    num = SIZE // (size + len(between))
    digits = DIGITS * (num * size // len(DIGITS) + 1)
    return between.join(digits[each * size : (each + 1) * size] for each in range(num))


@pytest.mark.parametrize("region", [None, "DE", "US", "GB"])
@pytest.mark.parametrize("between", ["", " ", "-", ".", "/", ", ", "      ", ") ("])
@pytest.mark.parametrize("size", [1, 3, 4, 8])
def test_few_groups_of_digits_are_read_as_numbers(
    size: int, between: str, region: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million digits took 11 seconds, of which nearly all went into groups that are none."""
    text = groups(size, between)
    parsed = counted_parses(monkeypatch)
    numbers = found(text, region)
    most = 0 if region is None else SIZE // size // 5
    assert len(parsed) <= len(numbers) + most


def test_a_number_behind_as_many_others_as_there_may_be_is_found() -> None:
    """After 65,535 groups that are none, `phonenumbers` finds nothing more in a text."""
    text = groups(3, " ") * 4 + " +49 30 901820"
    assert [(each.start, each.end) for each in Phones([]).find(text)][-1] == (
        len(text) - len("+49 30 901820"),
        len(text),
    )
    assert list(Phones(["DE"]).find(groups(4, " ") * 4 + ", 030 901820"))


def test_what_is_behind_a_date_is_not_copied_for_each() -> None:
    """The text behind each of them was, which took a square of its length."""
    text = "2012-01-02 08:30, " * 3 + "2012-01-02 08, +49 30 901820"
    assert found(text, None) == plainly_found(text, None)
    assert found(text, "US") == plainly_found(text, "US")
    matcher = matcher_type()("x" * SIZE + text, PLANS["US"])
    copied = []

    class Text(str):
        def __getitem__(self, at: object) -> str:
            part = super().__getitem__(at)  # type: ignore[index]
            copied.append(len(part))
            return part

    matcher.text = Text("2012-01-02 08, " * (SIZE // 15))
    assert list(chain(matcher))
    assert max(copied) < 1000
