"""The states of a job, and the allowed transitions."""

from enum import StrEnum


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


NEXT: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.EXPIRED}),
    JobState.RUNNING: frozenset(
        {
            JobState.SUCCEEDED,
            JobState.FAILED,
            JobState.CANCELLED,
            JobState.EXPIRED,
            JobState.QUEUED,  # the job was released, is to be retried, or its lease ran out
        }
    ),
    JobState.SUCCEEDED: frozenset(),
    # Only a user takes this way back, with `tidemill retry`.
    JobState.FAILED: frozenset({JobState.QUEUED}),
    JobState.CANCELLED: frozenset({JobState.QUEUED}),
    JobState.EXPIRED: frozenset({JobState.QUEUED}),
}

UNFINISHED = frozenset({JobState.QUEUED, JobState.RUNNING})
FINISHED = frozenset(JobState) - UNFINISHED
RETRIABLE = frozenset(state for state in FINISHED if JobState.QUEUED in NEXT[state])
