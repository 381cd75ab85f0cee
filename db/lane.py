"""The lanes of waiting jobs."""

from enum import StrEnum


class Lane(StrEnum):
    """The urgency of a job: interactive if a person waits for it, else bulk."""

    INTERACTIVE = "interactive"
    BULK = "bulk"
