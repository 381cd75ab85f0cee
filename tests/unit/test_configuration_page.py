"""docs/configuration.md names every setting and no other, with the worker's defaults."""

import re
from dataclasses import fields

from tasks.configuration.catalog import Model
from tests.running.workers import ROOT
from worker.cache.settings import CacheSettings
from worker.settings import Settings

PAGE = (ROOT / "docs" / "configuration.md").read_text()
# Polling intervals, which users have no reason to change.
INTERNAL = {"claim_seconds", "dispatch_seconds"}


def rows(title: str) -> list[tuple[list[str], str]]:
    """The settings and the default of each row of a section's tables."""
    (section,) = re.findall(rf"^## `\[{title}.*?(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^\| (`[a-z_`, ]+) \|.*\| ?(.*) \|$", section, re.MULTILINE)
    return [(re.findall("`([a-z_]+)`", names), default) for names, default in lines]


def test_every_setting_of_a_model_has_a_row_and_every_row_is_a_setting() -> None:
    engines = {"auto", "inflight", "exact", "ctranslate2", "vllm", "fake"}
    named = {name for names, _ in rows("models") for name in names} - engines
    settings = {each.name for each in fields(Model) if not each.name.startswith("fake_")}
    assert named == settings - {"alias"}


def test_every_setting_of_the_worker_has_a_row_with_its_default() -> None:
    defaults = {
        name: default
        for names, written in rows("worker")
        for name, default in zip(names, written.split(", "), strict=True)
    }
    assert defaults == {
        name: f"{field.default:g}"
        if isinstance(field.default, float)
        else str(field.default).lower()
        for name, field in Settings.__dataclass_fields__.items()
        if name not in INTERNAL
    }


def test_every_setting_of_the_cache_has_a_row_with_its_default() -> None:
    shown = {names[0]: default for names, default in rows("cache")}
    assert shown == {
        "enabled": "`true`",
        "ttl_seconds": f"{CacheSettings().ttl_seconds:.0f}, thirty days",
        "max_size": f'`"{CacheSettings().max_size}"`',
        "shared_between_tenants": "`false`",
    }
    assert shown.keys() == CacheSettings.__dataclass_fields__.keys()
