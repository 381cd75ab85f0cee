"""Action: what a guard does about what is suspicious."""

from enum import StrEnum


class Action(StrEnum):
    """A part that is tried again and still suspicious is flagged, or fails its job."""

    FLAG = "flag"
    RETRY = "retry"
    FAIL = "fail"
    RETRY_OR_FAIL = "retry_or_fail"

    @property
    def retries(self) -> bool:
        return self in (Action.RETRY, Action.RETRY_OR_FAIL)

    @property
    def fails(self) -> bool:
        return self in (Action.FAIL, Action.RETRY_OR_FAIL)
