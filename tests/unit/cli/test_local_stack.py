"""`up` reports in words why its worker ended, whatever the format of its log."""

import logging

import pytest

from cli.stack.local_stack import reason_of
from engine.logging import EventFormatter, JsonFormatter


def logged(level: int, event: str, formatter: logging.Formatter, **fields: str) -> str:
    record = logging.LogRecord("worker", level, "", 0, event, None, None)
    vars(record).update(fields)
    return formatter.format(record)


@pytest.mark.parametrize("formatter", [EventFormatter(), JsonFormatter()])
def test_the_reason_is_what_the_worker_called_critical(formatter: logging.Formatter) -> None:
    lines = [
        logged(logging.INFO, "engine started", formatter),
        logged(logging.CRITICAL, "cannot start", formatter, model="reports"),
        "something that is no line of the log",
        logged(logging.INFO, "stopped", formatter),
    ]
    assert reason_of("\n".join(lines)) == "cannot start model=reports"


@pytest.mark.parametrize("lines", ["Traceback: ...", '{"level": 3}', "{not json"])
def test_without_a_critical_event_the_reason_is_all_that_was_said(lines: str) -> None:
    assert reason_of(lines) == f"\n{lines}"
