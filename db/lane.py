"""The lanes in which jobs wait."""

from enum import StrEnum


class Lane(StrEnum):
    """The urgency of a job: interactive where a person waits for it, else bulk."""

    INTERACTIVE = "interactive"
    BULK = "bulk"
