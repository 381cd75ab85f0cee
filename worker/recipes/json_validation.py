"""JSON validation: whether a text is JSON that matches a schema, in bounded time.

A pattern may backtrack for ever, and a schema may repeat the same check many times, so each keyword
checks the time.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import cache
from typing import Any

import regex

from tasks.contracts.json_schema import place, validator_class_of

MAX_FAULT_CHARACTERS = 300
CHECK_SECONDS = 0.5  # of one answer; the outputs of other jobs wait for it
_deadline: ContextVar[float] = ContextVar("deadline")  # monotonic


def fault_of(text: str, schema: Mapping[str, Any] | None) -> str | None:
    """The reason that a text is not valid JSON for the schema; None if it is.

    It may quote the text.

    schema: None: any object
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        if schema is None:
            return None if isinstance(value, dict) else "it is JSON, but no object"
        _deadline.set(time.monotonic() + CHECK_SECONDS)
        first = next(_timed(validator_class_of(schema))(schema).iter_errors(value), None)
    except RecursionError:
        return "it is nested too deeply"
    except TimeoutError:
        return "to check it against the schema takes too long"
    except ValueError as error:
        return f"it is no JSON: {error}"[:MAX_FAULT_CHARACTERS]
    return first and f"{place(first.json_path)}: {first.message}"[:MAX_FAULT_CHARACTERS]


def json_within(text: str) -> str:
    """The text without the Markdown fence that a model may put around JSON."""
    fenced = re.fullmatch(r"\s*```(?:json)?[ \t]*\n(.*?)\n?```\s*", text, flags=re.DOTALL)
    return fenced[1] if fenced else text.strip()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


@cache
def _timed(validator_class: Any) -> Any:
    """The validator with a time check in each keyword."""
    from jsonschema import validators

    checks = {name: _watching(check) for name, check in validator_class.VALIDATORS.items()}
    return validators.extend(
        validator_class, {**checks, "pattern": _pattern, "patternProperties": _pattern_properties}
    )


def _watching(check: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
    def watching(*args: Any) -> Iterator[Any]:
        _seconds_left()
        yield from check(*args) or ()

    return watching


def _seconds_left() -> float:
    seconds = _deadline.get() - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if isinstance(value, str) and not _matches(pattern, value):
        yield ValidationError("the text does not match the pattern")


def _pattern_properties(validator: Any, patterns: Any, value: Any, schema: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for pattern, part in patterns.items():
            for name, each in value.items():
                if _matches(pattern, name):
                    yield from validator.descend(each, part, path=name, schema_path=pattern)


def _matches(pattern: str, text: str) -> bool:
    # `regex`, for it can be given a time; the interpreter is free meanwhile.
    return regex.search(pattern, text, timeout=_seconds_left(), concurrent=True) is not None
