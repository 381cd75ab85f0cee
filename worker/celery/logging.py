"""The worker's log: events with fields, and never any text of a message.

Celery, kombu and other libraries log the data that they fail on, often a user's text: an argument,
a header, a name, an error message, a whole message. So of a library's log line only the constant
words of its own code and numbers are shown; texts only if they are known to be a node, an address
or a connection. This is done when a record is created, so it holds for every handler and level. Of
an error only the type and the place are shown, whoever logs it.
"""

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress
from copy import copy
from types import TracebackType
from typing import Any

from celery.apps import worker as celery_worker
from celery.signals import (
    after_setup_logger,
    after_setup_task_logger,
    celeryd_init,
    worker_ready,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from engine.logging import (
    LOG_FORMAT_VARIABLE,
    EventFormatter,
    JsonFormatter,
    error_location,
    is_json,
)
from tasks.configuration import settings as places
from tasks.errors import SettingsError
from worker.settings import Settings

OURS = ("tasks", "worker", "db", "cli", "tests")
# The most times a minute that such a line is logged: a message may wait for days.
MAX_LINES = 3
WINDOW_SECONDS = 60.0

# Loggers of other libraries that report their own activity at INFO.
QUIET = ("alembic", "celery.app.trace", "celery.worker.strategy")

# Templates whose texts are names of nodes, addresses without passwords, and times.
KNOWN = (
    "%s ready.",
    "Connected to %s",
    "consumer: Cannot connect to",
    "%s (%r)",  # the consumer's, of a connection that was lost
    "Task %(name)s[%(id)s] ",  # the names and ids of tasks are checked before Celery has them
    "Discarding revoked task: %s[%s]",
    "Terminating %s (%s)",
    "mingle: ",
    "pidbox: Connected to %s.",
    "Events of group {%s} ",
    "worker: %s shutdown",
)
# Whole lines without arguments, by their beginnings.
CONSTANT = (
    "mingle: ",
    "worker: ",
    "Restoring ",
    "Temporarily reducing the prefetch count",
    "Resuming normal operations",
    "hub: ",
    "beat: ",
    "Global QoS",
)
CONNECTION_ERRORS = (RedisConnectionError, RedisTimeoutError, ConnectionError, TimeoutError)
SHOWN_FIELDS = ("name", "id", "runtime", "description")  # of Celery's Task %(name)s[%(id)s] lines


class Discreet:
    """A factory of log records without any text of a message."""

    def __init__(self, make: Any) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._written: dict[tuple[str, int], tuple[float, int]] = {}

    def __call__(
        self,
        name: str | None,
        level: int,
        path: str,
        line: int,
        message: Any,
        args: Any,
        exc_info: Any,
        *more: Any,
        **fields: Any,
    ) -> logging.LogRecord:
        error = exc_info[1] if isinstance(exc_info, tuple) else None
        if name is None or is_ours(name):  # None: an empty one, of `makeLogRecord`
            record = self._make(name, level, path, line, message, args, None, *more, **fields)
        else:
            text = discreet(message, args) or f"{name}: a line is withheld"
            record = self._make(name, level, path, line, text, (), None, *more, **fields)
            record.is_foreign = True
            record.is_repeated = not self._is_due((name, line))
        # Without the cause, whose message may quote a text.
        record.where = error_location(error) if error is not None else None
        return record  # type: ignore[no-any-return]

    def _is_due(self, source: tuple[str, int]) -> bool:
        now = time.monotonic()
        with self._lock:
            since, num = self._written.get(source, (now, 0))
            if now - since >= WINDOW_SECONDS:
                since, num = now, 0
            self._written[source] = since, num + 1
        return num < MAX_LINES


class Formatter(EventFormatter):
    """Formats our events with their fields, and a library's line with the place of its error."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(shown(record))


class JsonLines(JsonFormatter):
    """Formats the same records as JSON, one object a line."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(shown(record))


def shown(record: logging.LogRecord) -> logging.LogRecord:
    """Copy a record with only the fields that belong to an event."""
    place = getattr(record, "where", None)
    copied = copy(record)
    for name in ("where", "is_foreign", "is_repeated"):
        vars(copied).pop(name, None)
    if getattr(record, "is_foreign", False):
        for name in [name for name in vars(copied) if name not in _PLAIN]:
            del vars(copied)[name]
    if place is not None:
        copied.raised = place
    return copied


_PLAIN = frozenset(vars(logging.makeLogRecord({})))


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in OURS


def discreet(message: Any, args: Any) -> str:
    """Remove from a library's line all that may come from a message; may return an empty text."""
    if not isinstance(message, str):
        return ""
    if not args:
        return message if message.startswith(CONSTANT) else ""
    is_known = message.startswith(KNOWN)
    if not isinstance(args, dict) and len(args) == 1 and isinstance(args[0], dict):
        args = args[0]  # as logging itself does it
    try:
        if isinstance(args, dict):
            return message.split("\n")[0] % {
                name: value if is_known and name in SHOWN_FIELDS else _shown(value)
                for name, value in args.items()
            }
        return message % tuple(_shown(value, is_known) for value in args)
    except (TypeError, ValueError, KeyError):
        return message.split("\n")[0]


def _shown(value: Any, is_known: bool = False) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, BaseException):
        if isinstance(value, CONNECTION_ERRORS):
            return _Word(
                f"{type(value).__name__}: {str(value).splitlines()[0] if str(value) else ''}"
            )
        return _Word(type(value).__name__)
    if is_known and isinstance(value, str):
        return value
    return _Word(f"({type(value).__name__})")


class _Word(str):
    """A text that is formatted without quotes by both %s and %r."""

    def __repr__(self) -> str:
        return str(self)


def is_no_repetition(record: logging.LogRecord) -> bool:
    return not getattr(record, "is_repeated", False)


def is_no_rejection(record: logging.LogRecord) -> bool:
    """Whether to keep a record: all but Celery's lines on messages that wait for the database.

    Such a message is put back again and again; the outage itself is logged once.
    """
    args = getattr(record, "data", None)
    vars(record).pop("data", None)  # of Celery's own: the arguments
    return not (isinstance(args, dict) and args.get("description") == "rejected")


@after_setup_logger.connect
@after_setup_task_logger.connect
def show_fields(logger: logging.Logger, **_: Any) -> None:
    if not isinstance(logging.getLogRecordFactory(), Discreet):
        # Otherwise a failing handler prints the record with its stack.
        logging.raiseExceptions = False
        logging.setLogRecordFactory(Discreet(logging.getLogRecordFactory()))
        _log_what_nobody_catches()
    formatter = JsonLines() if _wants_json() else Formatter()
    for handler in logger.handlers:
        handler.setFormatter(formatter)
        handler.addFilter(is_no_repetition)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("celery.app.trace", "celery.worker.strategy"):
        logging.getLogger(name).addFilter(is_no_rejection)


def _wants_json() -> bool:
    """Whether the log is configured as JSON; the engines then log JSON too."""
    try:
        settings = Settings.from_environment(places.catalog().worker, os.environ)
    except SettingsError:
        return is_json()  # the worker's start reports the fault
    os.environ[LOG_FORMAT_VARIABLE] = settings.log_format
    return settings.log_format == "json"


@celeryd_init.connect
def print_nothing_beside_the_log(instance: Any, **_: Any) -> None:
    """Silence Celery's banner and farewell and Python's warnings under JSON logs."""
    if _wants_json():
        instance.quiet = True
        celery_worker.safe_say = lambda message, to=None: _write_line("INFO", message.strip())
        warnings.showwarning = _write_warning


def _write_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: Any = None,
) -> None:
    # Without its message, which may quote a text.
    _write_line("WARNING", "python warns", kind=category.__name__, at=f"{filename}:{lineno}")


def _write_line(level: str, event: str, **fields: str) -> None:
    """Write a line past the log's handlers.

    For use before there are any, and in a signal handler that may have interrupted one.
    """
    record = {"created": time.time(), "name": "celery", "levelname": level, "msg": event}
    line = JsonLines().format(logging.makeLogRecord({**record, **fields}))
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())


@worker_ready.connect
def show_stacks_without_locals(**_: Any) -> None:
    """Let SIGUSR1 write each thread's stack. Celery's own handler also writes variables."""
    # A Python handler, which runs while no other thread does. faulthandler's own handler reads
    # frames while they change, and sometimes crashed a worker.
    signal.signal(signal.SIGUSR1, _write_stacks)


def _write_stacks(*_: Any) -> None:
    # By its descriptor, since Celery replaces `sys.stderr` by a log.
    faulthandler.dump_traceback(file=2, all_threads=True)


def _log_what_nobody_catches() -> None:
    """Log uncaught exceptions by type and place; Python would print their messages."""
    log = logging.getLogger(__name__)

    def in_a_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            name = args.thread.name if args.thread is not None else None
            log.error("thread ended", exc_info=args.exc_value, extra={"thread_name": name})

    def anywhere(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, at)
        else:
            log.critical("process ended", exc_info=(kind, error, at))

    def in_vain(args: Any) -> None:
        if args.exc_value is not None:
            log.error("error ignored", exc_info=args.exc_value)

    threading.excepthook = in_a_thread
    sys.excepthook = anywhere
    sys.unraisablehook = in_vain
