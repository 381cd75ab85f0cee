"""Retention settings: the [retention] table of `tidemill.toml`.

[retention]
payloads = "30d"
outputs = "90d"
at = "03:00"            # when the nightly pass begins

[retention.tasks.chat]
payloads = "1d"

[retention.tenants.acme]
outputs = "7d"
"""

import re
from collections.abc import Mapping
from datetime import time
from typing import Any

from db.upkeep.retention import ROW_CLASSES, SHARED_CLASSES, Ages, Retention
from engine.protocol.task_names import TASK_NAMES
from tasks.errors import SettingsError

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
MAX_SECONDS = 10**10  # about three hundred years
MIN_AUDIT_SECONDS = 86_400.0  # the last hash is logged once a day
_AGE = re.compile(r"([0-9]{1,9})\s*([smhdw])")
_PARTS = ("at", "tasks", "tenants")


def retention_of(table: Any) -> Retention:
    """Read the table; raises SettingsError with the name of a faulty setting."""
    written = _table("retention", table)
    own = {name: value for name, value in written.items() if name not in _PARTS}
    tasks = _table("retention.tasks", written.get("tasks", {}))
    for name in tasks:
        if name not in TASK_NAMES:
            names = ", ".join(TASK_NAMES)
            raise SettingsError(f"retention.tasks.{name} is not a task; known: {names}")
    tenants = _table("retention.tenants", written.get("tenants", {}))
    return Retention(
        for_all=_ages("retention", own, _PARTS),
        by_task=_own_ages("retention.tasks", tasks),
        by_tenant=_own_ages("retention.tenants", tenants),
        at=_time_of_day(written.get("at", "03:00")),
    )


def _own_ages(place: str, tables: Mapping[str, Any]) -> dict[str, Ages]:
    by_name = {}
    for name, table in tables.items():
        ages = _ages(f"{place}.{name}", _table(f"{place}.{name}", table), ())
        if shared := sorted(ages.keys() & set(SHARED_CLASSES)):
            raise SettingsError(
                f"{place}.{name}.{shared[0]} cannot be kept apart: it is nobody's own; "
                f"say retention.{shared[0]}"
            )
        by_name[name] = ages
    return by_name


def _ages(place: str, table: Mapping[str, Any], others: tuple[str, ...]) -> Ages:
    for name in table:
        if name not in ROW_CLASSES:
            classes = ", ".join((*ROW_CLASSES, *others))
            raise SettingsError(f"{place}.{name} is not a setting; known: {classes}")
    ages = {name: age_seconds(f"{place}.{name}", value) for name, value in table.items()}
    if ages.get("audit", MIN_AUDIT_SECONDS) < MIN_AUDIT_SECONDS:
        raise SettingsError(f"{place}.audit is {table['audit']!r}; the least is a day, 1d")
    return ages


def age_seconds(setting: str, value: Any) -> float:
    """Parse a length of time such as `30d` into seconds; raises SettingsError if it is invalid."""
    written = _AGE.fullmatch(value.strip()) if isinstance(value, str) else None
    seconds = int(written[1]) * SECONDS[written[2]] if written else -1
    if not 0 <= seconds <= MAX_SECONDS:
        raise SettingsError(
            f'{setting} is {value!r}; write a number and its unit, as "30d": '
            "s, m, h, d or w, for seconds, minutes, hours, days or weeks"
        )
    return float(seconds)


def _time_of_day(value: Any) -> time:
    try:
        if isinstance(value, time):
            return value
        if isinstance(value, str):
            return time.fromisoformat(value).replace(tzinfo=None)
    except ValueError:
        pass
    raise SettingsError(f'retention.at is {value!r}; write a time of day, as "03:00"')


def _table(place: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingsError(f"{place} is not a table; write [{place}]")
    return value
