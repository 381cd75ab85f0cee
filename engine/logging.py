"""What the engine process says on standard error: constant events with fields."""

from __future__ import annotations

import logging
import sys
import traceback

# What every record has; the rest are the fields of the event.
COMMON = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class EventFormatter(logging.Formatter):
    """`2026-01-31 02:00:00,000 INFO engine ready alias=reports threads=2`"""

    def format(self, record: logging.LogRecord) -> str:
        fields = [f"{key}={value}" for key, value in vars(record).items() if key not in COMMON]
        return " ".join([super().format(record), *fields])


def log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EventFormatter("%(asctime)s %(levelname)s %(message)s"))
    own = logging.getLogger("engine")
    own.addHandler(handler)
    own.setLevel(logging.INFO)
    # Other libraries may quote a prompt in what they log or warn of.
    own.propagate = False
    logging.getLogger().addHandler(logging.NullHandler())
    logging.captureWarnings(True)


def error_location(error: BaseException) -> str:
    """An error's type and place. Not its message, which may quote a user's text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
