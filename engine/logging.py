"""The engine process's log on standard error: constant events with fields."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

LOG_FORMATS = ("text", "json")
LOG_FORMAT_VARIABLE = "TIDEMILL_LOG_FORMAT"  # by which a worker tells its engines
# What every record has; the rest are the fields of the event.
COMMON = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class EventFormatter(logging.Formatter):
    """Formats records as `2026-01-31 02:00:00,000 INFO engine ready alias=reports threads=2`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        fields = [f"{key}={as_text(value)}" for key, value in fields_of(record).items()]
        return " ".join([super().format(record), *fields])


class JsonFormatter(logging.Formatter):
    """Formats records as `{"time": "2026-01-31T01:00:00.000+00:00", "level": ...}`.

    Each is one line of ASCII, whatever the fields hold.
    """

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": _message(record),
        }
        # The event's own names come second, for no field may stand in for these.
        fields = {**fields_of(record), **line}
        try:
            return json.dumps(fields, default=as_text, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            # A number that JSON has none for, a key that is no text, a circle.
            return json.dumps({name: as_text(value) for name, value in fields.items()})


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # from a field's own code: a line is better than none
        return "a line that cannot be shown"


def as_text(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"({type(value).__name__})"


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a record's event."""
    return {key: value for key, value in vars(record).items() if key not in COMMON}


def is_json(environment: Mapping[str, str] = os.environ) -> bool:
    return environment.get(LOG_FORMAT_VARIABLE) == "json"


def log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if is_json() else EventFormatter())
    own = logging.getLogger("engine")
    own.addHandler(handler)
    own.setLevel(logging.INFO)
    # Other libraries may quote a prompt in what they log or warn of.
    own.propagate = False
    logging.getLogger().addHandler(logging.NullHandler())
    logging.captureWarnings(True)


def error_location(error: BaseException) -> str:
    """The type and place of an error, without its message, which may quote a user's text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
