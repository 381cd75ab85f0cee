"""A worker that imports this brings nothing back: no dead worker's jobs, no lost messages.

For the canaries: `celery worker --include tests.chaos.no_recovery`.
"""

from typing import Any

from worker.dispatcher.dispatcher import Dispatcher


def _do_nothing(*_: Any) -> None:
    pass


Dispatcher._recover = _do_nothing  # type: ignore[method-assign,assignment]
