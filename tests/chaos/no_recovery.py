"""A worker that imports this brings nothing back: no dead worker's jobs, no lost messages.

For the canaries: `celery worker --include tests.chaos.no_recovery`.
"""

from typing import Any

from worker.dispatcher.rescuer import Rescuer


def _do_nothing(*_: Any) -> None:
    pass


Rescuer.rescue = _do_nothing  # type: ignore[method-assign,assignment]
