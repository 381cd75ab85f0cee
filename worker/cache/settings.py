"""The content cache's settings: the [cache] table of `tidemill.toml`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from engine.protocol.model_settings import bytes_of
from tasks.errors import SettingsError

DAY_SECONDS = 86_400.0
MAX_DAYS = 36_500


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    enabled: bool = True
    ttl_seconds: float = 30 * DAY_SECONDS  # an older answer is computed again, and forgotten
    max_size: str = "1GiB"  # of all answers; above it the least recently used are forgotten
    shared_between_tenants: bool = False  # whether a tenant gets what another one computed

    def __post_init__(self) -> None:
        if not 0 < self.ttl_seconds <= MAX_DAYS * DAY_SECONDS:
            raise SettingsError(
                f"cache.ttl_seconds is {self.ttl_seconds:g}; it must be more than 0 and at most "
                f"{MAX_DAYS:,} days"
            )
        try:
            bytes_of(self.max_size)
        except ValueError:
            raise SettingsError(
                f'cache.max_size is {self.max_size!r}; write a size such as "512MiB" or "2GiB"'
            ) from None

    @property
    def max_bytes(self) -> int:
        return bytes_of(self.max_size)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Self:
        """Read the table; raises SettingsError with the name of a faulty setting."""
        if not isinstance(table, Mapping):
            raise SettingsError("cache is not a table; write [cache]")
        types = {field.name: field.type for field in fields(cls)}
        for name, value in table.items():
            if name not in types:
                raise SettingsError(
                    f"cache.{name} is not a setting; known: {', '.join(sorted(types))}"
                )
            kinds, kind = KINDS[types[name]]
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise SettingsError(f"cache.{name} must be {kind}, not {value!r}")
        return cls(**table)


KINDS: Mapping[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    float: ((int, float), "a number"),
    str: ((str,), 'a size such as "1GiB"'),
}
