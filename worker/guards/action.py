"""Action: how a guard treats a suspicious answer."""

from enum import StrEnum


class Action(StrEnum):
    """The treatment of an answer that stays suspicious after retries: flag it, or fail its job."""

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
