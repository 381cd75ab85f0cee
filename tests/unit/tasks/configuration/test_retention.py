"""The [retention] table: what is read from it, and what is refused in words."""

import tomllib
from datetime import time

import pytest

from db.upkeep.retention import ClassAges
from tasks.configuration.retention import age_seconds, retention_of
from tasks.errors import SettingsError

DAY = 86_400.0


def test_ages_are_for_all_by_task_and_by_tenant() -> None:
    retention = retention_of(
        tomllib.loads(
            """
            payloads = "30d"
            audit = "52w"
            at = "02:30"
            [tasks.chat]
            payloads = "12h"
            [tenants.acme]
            payloads = "7d"
            outputs = "0d"
            """
        )
    )

    assert retention.at == time(2, 30)
    assert retention.ages("payloads") == ClassAges(
        for_all=30 * DAY, by_task={"chat": DAY / 2}, by_tenant={"acme": 7 * DAY}
    )
    assert retention.ages("outputs") == ClassAges(by_tenant={"acme": 0.0})
    assert retention.ages("audit").for_all == 364 * DAY
    assert not retention.ages("segments")


def test_without_a_table_everything_stays() -> None:
    assert not retention_of({})
    assert not retention_of({"at": "04:00"})


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("2h", 7200), ("1d", DAY), ("2w", 14 * DAY)]
)
def test_an_age_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert age_seconds("retention.payloads", text) == seconds


@pytest.mark.parametrize(
    "value", ["30", 30, "-1d", "d", "1.5d", "1y", "", None, "٣d", True, "99999w9"]
)
def test_an_invalid_age_is_named(value: object) -> None:
    with pytest.raises(SettingsError, match=r"retention\.outputs is .*30d"):
        retention_of({"outputs": value})


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"prompts": "1d"}, r"retention\.prompts is not a setting; known: payloads, outputs"),
        ({"tasks": {"sing": {}}}, r"retention\.tasks\.sing is not a task; known: summarize"),
        ({"tasks": {"chat": {"audit": "1d"}}}, r"say retention\.audit"),
        ({"tenants": {"acme": {"cache": "1d"}}}, r"say retention\.cache"),
        ({"tenants": {"acme": {"at": "1d"}}}, r"retention\.tenants\.acme\.at is not a setting"),
        ({"audit": "23h"}, r"retention\.audit is '23h'; the least is a day"),
        ({"tenants": "acme"}, r"retention\.tenants is not a table"),
        ({"tasks": {"chat": "1d"}}, r"retention\.tasks\.chat is not a table"),
        ({"at": "25:00"}, r"retention\.at is '25:00'"),
        ({"at": 3}, r"retention\.at is 3"),
    ],
)
def test_a_retention_table_with_a_fault_is_refused_in_words(
    table: dict[str, object], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        retention_of(table)
