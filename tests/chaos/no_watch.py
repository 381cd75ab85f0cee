"""A worker that imports this does not look who owns the jobs that it runs.

For the canaries: `celery worker --include tests.chaos.no_watch`.
"""

from worker.heartbeat import Heartbeat


def end_lost(self: Heartbeat) -> None:
    pass


Heartbeat.end_lost = end_lost  # type: ignore[method-assign]
