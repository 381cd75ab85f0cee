"""Sabotage: a worker that imports this requeues no dead worker's jobs and no lost messages.

For the canaries: `celery worker --include tests.chaos.no_recovery`.
"""

from typing import Any

from worker.dispatcher.rescuer import Rescuer


def _do_nothing(*_: Any) -> None:
    pass


Rescuer.rescue = _do_nothing  # type: ignore[method-assign,assignment]
