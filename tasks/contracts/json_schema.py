"""JSON schemas of jobs: which are accepted.

A schema must be self-contained: references point to its own parts, and a cycle must go deeper into
the value. Errors name places and keywords, never its texts.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

MAX_SCHEMA_CHARACTERS = 65_536  # as JSON
MAX_SCHEMA_DEPTH = 64
MAX_PATTERN_CHARACTERS = 1_000
MAX_PLACE_CHARACTERS = 64

REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
VALUES = frozenset({"const", "default", "enum", "examples"})  # their values are not schemas
NAMED_SCHEMAS = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
)
IN_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else")  # of the same value


def fault_of_schema(schema: Mapping[str, Any]) -> str | None:
    """The reason that a schema is refused; None if it is accepted."""
    fault = _fault_of_size(schema)
    # All jobs of a batch usually share one schema.
    return fault if fault is not None else _fault_of_text(json.dumps(schema))


@lru_cache(maxsize=64)
def _fault_of_text(text: str) -> str | None:
    schema = json.loads(text)
    from jsonschema.exceptions import SchemaError

    validator_class = validator_class_of(schema)
    try:
        validator_class.check_schema(schema)
    except SchemaError as error:
        return f"is no JSON schema: {place(error.json_path)} is not what {error.validator} asks"
    except RecursionError:
        return "is nested too deeply"
    for key, value in _strings(schema):
        fault = _fault_of_pattern(value) if key == "pattern" else None
        if key in REFERENCES and not value.startswith("#"):
            fault = "refers to another document; put what it needs under $defs"
        if fault is not None:
            return fault
    return _fault_of_references(schema, validator_class)


def _fault_of_size(schema: Mapping[str, Any]) -> str | None:
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
        text.encode()
    except RecursionError:
        return "is nested too deeply"
    except TypeError:
        return "holds something that JSON has not"
    except ValueError:
        return "holds NaN, infinity or half a character; leave it out"
    if "\\u0000" in text:
        return "holds a NUL byte; remove it"
    if len(text) > MAX_SCHEMA_CHARACTERS:
        return f"has {len(text)} characters as JSON; at most {MAX_SCHEMA_CHARACTERS} are taken"
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        return f"is nested deeper than {MAX_SCHEMA_DEPTH} levels; put parts of it under $defs"
    return None


def _depth(value: Any) -> int:
    deepest, left = 0, [(value, 1)]
    while left:
        each, depth = left.pop()
        deepest = max(deepest, depth)
        children = each.values() if isinstance(each, Mapping) else each
        if isinstance(each, Mapping | list):
            left += [(child, depth + 1) for child in children]
    return deepest


def _strings(schema: Any, is_named: bool = False) -> Iterator[tuple[str, str]]:
    """The (keyword, text) pairs of a schema and its subschemas, patterns of names included.

    is_named: the keys are users' names, each with a schema
    """
    if isinstance(schema, list):
        for each in schema:
            yield from _strings(each)
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        if is_named:
            yield from _strings(value)
        elif isinstance(value, str):
            yield key, value
        elif key == "patternProperties":
            yield from (("pattern", pattern) for pattern in value)
            yield from _strings(value, is_named=True)
        elif key not in VALUES:
            yield from _strings(value, is_named=key in NAMED_SCHEMAS)


def _fault_of_pattern(pattern: str) -> str | None:
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        return (
            f"has a pattern of {len(pattern)} characters; at most {MAX_PATTERN_CHARACTERS} "
            "are taken"
        )
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return "has a pattern that is no regular expression"
    return None


def _fault_of_references(schema: Mapping[str, Any], validator_class: Any) -> str | None:
    """The fault of a reference: it leads nowhere, or cycles without going deeper."""
    from referencing.exceptions import Unresolvable

    resolver = validator_class(schema)._resolver
    finished: set[int] = set()
    on_the_way: set[int] = set()

    def goes_round(part: Any) -> bool:
        if not isinstance(part, Mapping) or id(part) in finished:
            return False
        if id(part) in on_the_way:
            return True
        on_the_way.add(id(part))
        same_value: list[Any] = [
            resolver.lookup(part[name]).contents
            for name in REFERENCES
            if isinstance(part.get(name), str)
        ]
        for name in IN_PLACE:
            inner = part.get(name)
            same_value += inner if isinstance(inner, list) else [inner]
        same_value += (part.get("dependentSchemas") or {}).values()
        is_round = any(map(goes_round, same_value))
        on_the_way.discard(id(part))
        finished.add(id(part))
        return is_round

    def parts(part: Any, is_named: bool = False) -> Iterator[Any]:
        if isinstance(part, list):
            for each in part:
                yield from parts(each)
        if isinstance(part, Mapping):
            if not is_named:
                yield part
            for key, value in part.items():
                if is_named or key not in VALUES:
                    yield from parts(value, is_named=not is_named and key in NAMED_SCHEMAS)

    try:
        if any(goes_round(part) for part in parts(schema)):
            return "refers to itself without going deeper; it would never be checked to its end"
    except Unresolvable:
        return "refers to a part that it does not have"
    except RecursionError:
        return "is nested too deeply"
    return None


def place(json_path: str) -> str:
    """The path in a schema or a value, such as `$.items[0]`."""
    short = json_path[:MAX_PLACE_CHARACTERS]
    return short if short.isprintable() else repr(short)


def validator_class_of(schema: Mapping[str, Any]) -> Any:
    """The validator of the dialect that a schema names; 2020-12 by default."""
    from jsonschema import Draft202012Validator, validators

    named = schema.get("$schema")
    dialect = {"$schema": named} if isinstance(named, str) else {}
    return validators.validator_for(dialect, default=Draft202012Validator)
