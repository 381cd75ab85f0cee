"""The [cache] table: errors name the wrong value and its remedy."""

from typing import Any

import pytest

from tasks.errors import SettingsError
from worker.cache.settings import CacheSettings


def test_a_missing_setting_has_its_default() -> None:
    assert CacheSettings.of({}) == CacheSettings()
    table = {"enabled": False, "ttl_seconds": 3600, "max_size": "2MiB"}
    settings = CacheSettings.of(table)
    assert (settings.enabled, settings.ttl_seconds, settings.max_bytes) == (False, 3600, 2**21)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"enable": True}, r"cache\.enable is not a setting; known: enabled, max_size, "),
        ({"enabled": "no"}, r"cache\.enabled must be true or false, not 'no'"),
        ({"enabled": 1}, r"cache\.enabled must be true or false, not 1"),
        ({"ttl_seconds": True}, r"cache\.ttl_seconds must be a number, not True"),
        ({"ttl_seconds": "30d"}, r"cache\.ttl_seconds must be a number, not '30d'"),
        ({"ttl_seconds": 0}, r"cache\.ttl_seconds is 0; it must be more than 0"),
        ({"ttl_seconds": float("nan")}, r"cache\.ttl_seconds is nan; it must be more than 0"),
        ({"ttl_seconds": float("inf")}, r"cache\.ttl_seconds is inf; .* at most 36,500 days"),
        ({"max_size": "much"}, r"cache\.max_size is 'much'; write a size such as \"512MiB\""),
        ({"max_size": "0B"}, r"cache\.max_size is '0B'; write a size"),
        ({"max_size": 5}, r"cache\.max_size must be a size such as \"1GiB\", not 5"),
        ([], r"cache is not a table; write \[cache\]"),
    ],
)
def test_a_wrong_setting_is_named(table: Any, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        CacheSettings.of(table)
