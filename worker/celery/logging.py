"""The worker's log: Celery's handlers, with the fields of each event behind it."""

import logging
from typing import Any

from celery.signals import after_setup_logger, after_setup_task_logger

from engine.logging import EventFormatter

# What other libraries say at INFO of their own doings.
QUIET = ("alembic", "celery.app.trace", "celery.worker.strategy")


@after_setup_logger.connect
@after_setup_task_logger.connect
def show_fields(logger: logging.Logger, **_: Any) -> None:
    for handler in logger.handlers:
        handler.setFormatter(EventFormatter("%(asctime)s %(levelname)s %(message)s"))
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
