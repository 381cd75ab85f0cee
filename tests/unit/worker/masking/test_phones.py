"""Telephone numbers are found to the end of a text."""

import pytest

from worker.masking.phones import Phones


@pytest.mark.parametrize(("regions", "number"), [([], "+49 30 901820"), (["DE"], "030 901820")])
def test_a_number_is_found_after_many_groups_of_digits_that_are_none(
    regions: list[str], number: str
) -> None:
    """By default `phonenumbers` stops searching a text after 65,535 such groups."""
    text = "1;" * 66_000 + number
    *_, last = Phones(regions).find(text)
    assert text[last.start : last.end] == number
