"""Retention: how long each class of data is kept, and the time of the nightly pass.

A class is a kind of row or text: the users' input (`payloads`), results (`outputs`), parts of
documents (`segments`), answers cached for equal requests (`cache`), failed attempts (`attempts`),
the audit (`audit`), and `files`, which are not stored yet: the class is reserved for uploads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta

ROW_CLASSES = ("payloads", "outputs", "segments", "cache", "files", "attempts", "audit")
# Rows without a tenant can have only one age.
SHARED_CLASSES = ("cache", "audit")

Ages = Mapping[str, float]  # row class -> seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassAges:
    """The ages of one class in seconds.

    A tenant's precedes a task's, which precedes the general one.

    Data without an age is kept.
    """

    for_all: float | None = None
    by_task: Mapping[str, float] = field(default_factory=dict)
    by_tenant: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.for_all is not None or bool(self.by_task or self.by_tenant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """The age at which each class of data is pruned, and the time of the nightly pass."""

    for_all: Ages = field(default_factory=dict)
    by_task: Mapping[str, Ages] = field(default_factory=dict)
    by_tenant: Mapping[str, Ages] = field(default_factory=dict)
    at: time = time(3)  # local time of the machine of the leader

    def __bool__(self) -> bool:
        return any((self.for_all, *self.by_task.values(), *self.by_tenant.values()))

    def ages(self, row_class: str) -> ClassAges:
        assert row_class in ROW_CLASSES
        return ClassAges(
            for_all=self.for_all.get(row_class),
            by_task=_of_class(self.by_task, row_class),
            by_tenant=_of_class(self.by_tenant, row_class),
        )


def _of_class(ages: Mapping[str, Ages], row_class: str) -> dict[str, float]:
    return {name: own[row_class] for name, own in ages.items() if row_class in own}


def seconds_until(at: time, now: datetime) -> float:
    """Seconds from a local instant until the clock next shows `at`; never 0."""
    today = now.replace(
        hour=at.hour, minute=at.minute, second=at.second, microsecond=at.microsecond
    )
    following = today if today > now else today + timedelta(days=1)
    return (following - now).total_seconds()
