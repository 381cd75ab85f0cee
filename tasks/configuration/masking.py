"""Masking rules: the [masking] table of `tidemill.toml`, which selects the data to mask.

[masking]
rules = ["email", "iban"]              # for every job

[masking.tasks.chat]
rules = ["card", "phone"]              # additional rules
phone_region = "DE"                    # for numbers without a country code

[masking.tenants.acme]
patterns = { CUSTOMER = 'K-[0-9]{6}' }
finders = ["acme.privacy:names"]       # objects with a method `find`, see docs/masking.md
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from engine.protocol.task_names import TASK_NAMES
from tasks.errors import SettingsError

RULES = ("email", "url_secret", "ip", "card", "iban", "phone")
KIND = re.compile(r"[A-Z][A-Z0-9]{0,30}")
_FIELDS = ("rules", "patterns", "finders", "phone_region")


@dataclass(frozen=True, slots=True)
class MaskingRules:
    """The patterns to mask."""

    rules: frozenset[str] = frozenset()
    patterns: tuple[tuple[str, str], ...] = ()  # a kind and a regular expression
    finders: tuple[str, ...] = ()  # "module:object"
    phone_regions: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.rules or self.patterns or self.finders)

    def with_(self, more: Self) -> "MaskingRules":
        """Join both sets of rules: a narrower table never unmasks what a wider one masks."""
        return MaskingRules(
            self.rules | more.rules,
            tuple(dict.fromkeys((*self.patterns, *more.patterns))),
            tuple(dict.fromkeys((*self.finders, *more.finders))),
            self.phone_regions | more.phone_regions,
        )


NOTHING = MaskingRules()


@dataclass(frozen=True, slots=True)
class Masking:
    """Rules in general, by task and by tenant; all that apply to a job are used."""

    for_all: MaskingRules = NOTHING
    by_task: Mapping[str, MaskingRules] = field(default_factory=dict)
    by_tenant: Mapping[str, MaskingRules] = field(default_factory=dict)

    def rules_for(self, task: str, tenant: str) -> MaskingRules:
        rules = self.for_all.with_(self.by_task.get(task, NOTHING))
        return rules.with_(self.by_tenant.get(tenant, NOTHING))

    @property
    def masks(self) -> bool:
        """Whether any job may be masked."""
        return any((self.for_all, *self.by_task.values(), *self.by_tenant.values()))


def masking_of(table: Any) -> Masking:
    """Read the table; raises SettingsError with the name of a faulty setting."""
    written = _table("masking", table)
    tasks = _table("masking.tasks", written.get("tasks", {}))
    for name in tasks:
        if name not in TASK_NAMES:
            raise SettingsError(
                f"masking.tasks.{name} is not a task; known: {', '.join(TASK_NAMES)}"
            )
    tenants = _table("masking.tenants", written.get("tenants", {}))
    own = {name: value for name, value in written.items() if name not in ("tasks", "tenants")}
    return Masking(
        _rules("masking", own),
        {name: _rules(f"masking.tasks.{name}", value) for name, value in tasks.items()},
        {name: _rules(f"masking.tenants.{name}", value) for name, value in tenants.items()},
    )


def _rules(place: str, written: Any) -> MaskingRules:
    table = _table(place, written)
    for name in table:
        if name not in _FIELDS:
            raise SettingsError(f"{place}.{name} is not a setting; known: {', '.join(_FIELDS)}")
    rules = _texts(f"{place}.rules", table.get("rules", []))
    for rule in rules:
        if rule not in RULES:
            raise SettingsError(f"{place}.rules: {rule!r} is none of {', '.join(RULES)}")
    patterns = _table(f"{place}.patterns", table.get("patterns", {}))
    for kind, pattern in patterns.items():
        if KIND.fullmatch(kind) is None:
            raise SettingsError(
                f"{place}.patterns.{kind}: a kind is capital letters and digits, as CUSTOMER"
            )
        try:
            is_empty = re.compile(pattern).search("") is not None
        except (TypeError, re.error, RecursionError, OverflowError) as error:
            raise SettingsError(
                f"{place}.patterns.{kind} is no regular expression: {error}"
            ) from None
        if is_empty:
            raise SettingsError(f"{place}.patterns.{kind} finds an empty text")
    finders = _texts(f"{place}.finders", table.get("finders", []))
    for finder in finders:
        if not re.fullmatch(r"[\w.]+:\w+", finder):
            raise SettingsError(f"{place}.finders: {finder!r} must be 'module:object'")
    region = table.get("phone_region")
    if region is not None and not re.fullmatch("[A-Z]{2}", str(region)):
        raise SettingsError(f"{place}.phone_region must be a country such as DE, not {region!r}")
    regions = frozenset[str]() if region is None else frozenset({region})
    return MaskingRules(frozenset(rules), tuple(patterns.items()), tuple(finders), regions)


def _table(place: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f"{place} must be a table, not {value!r}")
    return value


def _texts(place: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise SettingsError(f"{place} must be a list of texts, not {value!r}")
    return value
