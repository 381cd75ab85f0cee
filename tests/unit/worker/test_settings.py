"""The [worker] table: errors name the wrong value and its remedy."""

from dataclasses import fields
from typing import Any

import pytest

from tasks.errors import SettingsError
from worker.settings import Settings


def test_a_missing_setting_has_its_default() -> None:
    assert Settings.of({}) == Settings()
    assert Settings.of({"lease_seconds": 90}).lease_seconds == 90


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"lease_second": 5}, r"worker\.lease_second is not a setting; known: .*lease_seconds"),
        ({"flush_outcomes": 1.5}, r"worker\.flush_outcomes must be a whole number, not 1\.5"),
        ({"flush_outcomes": True}, r"worker\.flush_outcomes must be a whole number, not True"),
        ({"drain_seconds": "soon"}, r"worker\.drain_seconds must be a number, not 'soon'"),
        ({"drain_seconds": False}, r"worker\.drain_seconds must be a number, not False"),
        ({"max_failures": 0}, r"worker\.max_failures must be more than 0"),
        ({"retry_seconds": -1}, r"worker\.retry_seconds must be more than 0"),
        (
            {"renew_seconds": 40},
            r"worker\.renew_seconds is 40 and worker\.lease_seconds 60: "
            "a lease must outlast two renewals",
        ),
    ],
)
def test_a_wrong_setting_is_named(table: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        Settings.of(table)


@pytest.mark.parametrize("name", [field.name for field in fields(Settings)])
@pytest.mark.parametrize("value", [0, -1])
def test_every_setting_is_more_than_nothing(name: str, value: int) -> None:
    with pytest.raises(SettingsError, match=rf"worker\.{name} "):
        Settings.of({name: value})
