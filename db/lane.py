"""The lanes in which jobs wait."""

from enum import StrEnum


class Lane(StrEnum):
    """How urgent a job is: somebody waits for it, or it belongs to a night's work."""

    INTERACTIVE = "interactive"
    BULK = "bulk"
