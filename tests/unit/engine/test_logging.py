"""A line of a log is written, and is one object of JSON, whatever is in it."""

import json
import logging
import math
from typing import Any

import pytest

from engine.logging import EventFormatter, JsonFormatter


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


def record(message: object, *args: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("worker.x", logging.INFO, "", 1, message, args, None)
    vars(made).update(fields)
    return made


def refuse(constant: str) -> float:
    pytest.fail(f"{constant} is no JSON")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb\r\x85\u2028\x00", "a\nb\r\x85\u2028\x00"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        ({"a": math.nan}, "{'a': nan}"),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        (CIRCLE, "[[...]]"),
        (b"\xff", "b'\\xff'"),
        (Unspeakable(), "(Unspeakable)"),
        ({1, 2}, "{1, 2}"),
        (3, 3),
        (None, None),
    ],
)
def test_a_field_of_any_kind_is_in_one_object_of_one_line(value: object, shown: object) -> None:
    line = JsonFormatter().format(record("ended", field=value, event="another", level=3))
    assert line.isascii()
    assert len(line.splitlines()) == 1
    read = json.loads(line, parse_constant=refuse)
    assert read["field"] == shown
    assert (read["event"], read["level"], read["logger"]) == ("ended", "INFO", "worker.x")


@pytest.mark.parametrize("formatter", [JsonFormatter(), EventFormatter()])
def test_a_field_that_cannot_be_shown_is_replaced_alone(formatter: logging.Formatter) -> None:
    assert "job=7" in formatter.format(record("x", job=7)).replace('"job": 7', "job=7")
    assert "(Unspeakable)" in formatter.format(record("x", it=Unspeakable()))


def test_a_record_whose_arguments_do_not_fit_is_still_a_line() -> None:
    line = json.loads(JsonFormatter().format(record("%s %s", 1, job_id="j")))
    assert (line["event"], line["job_id"]) == ("a line that cannot be shown", "j")
