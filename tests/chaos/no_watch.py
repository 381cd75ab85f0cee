"""Sabotage: a worker that imports this does not check whether it still owns its running jobs.

For the canaries: `celery worker --include tests.chaos.no_watch`.
"""

from worker.heartbeat import Heartbeat


def end_lost(self: Heartbeat) -> None:
    pass


Heartbeat.end_lost = end_lost  # type: ignore[method-assign]
