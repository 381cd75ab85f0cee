"""Telephone numbers are found to the end of a text."""

import pytest

from worker.masking.phones import Phones


@pytest.mark.parametrize(("regions", "number"), [([], "+49 30 901820"), (["DE"], "030 901820")])
def test_a_number_behind_many_groups_of_digits_that_are_none_is_found(
    regions: list[str], number: str
) -> None:
    """After 65,535 of them, `phonenumbers` by itself finds nothing more in a text."""
    text = "1;" * 66_000 + number
    *_, last = Phones(regions).find(text)
    assert text[last.start : last.end] == number
