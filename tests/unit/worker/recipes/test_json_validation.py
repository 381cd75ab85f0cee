"""Answers are checked against their schema, in bounded time for any schema and answer."""

import json
from typing import Any

import pytest

from worker.recipes import json_validation as json_answer
from worker.recipes.json_validation import fault_of, json_within


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("{}", None),
        (' {"a": 1}\n', None),
        ("1", {}),
        ('{"a": 1}', {"type": "object", "required": ["a"]}),
        ('{"s": "aab"}', {"properties": {"s": {"pattern": "^a+b$"}}}),
        ('{"s_x": 1}', {"patternProperties": {"^s_": {"type": "integer"}}}),
        ('{"n": {"n": {}}}', {"type": "object", "properties": {"n": {"$ref": "#"}}}),
    ],
)
def test_a_matching_text_has_no_fault(text: str, schema: dict[str, Any] | None) -> None:
    assert fault_of(text, schema) is None


@pytest.mark.parametrize(
    ("text", "schema", "says"),
    [
        ("", None, "no JSON"),
        ("Sure! {}", None, "no JSON"),
        ('{"a": 1', None, "no JSON"),
        ("NaN", {}, "NaN is no number"),
        ('{"a": -Infinity}', {}, "no number"),
        ("[]", None, "no object"),
        ("null", None, "no object"),
        ('{"b": 1}', {"required": ["a"]}, r"\$: 'a' is a required property"),
        ('{"a": "x"}', {"properties": {"a": {"type": "integer"}}}, r"\$.a: "),
        ('{"s": "b"}', {"properties": {"s": {"pattern": "^a+b$"}}}, "pattern"),
        ('{"s_x": ""}', {"patternProperties": {"^s_": {"type": "integer"}}}, "integer"),
        ("[" * 100_000, {}, "nested too deeply"),
        ("1" * 5_000, {}, "no JSON"),
    ],
)
def test_a_text_that_does_not_match_has_a_fault(
    text: str, schema: dict[str, Any] | None, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        raise ValueError(fault_of(text, schema))


def anyof_bomb(depth: int) -> dict[str, Any]:
    """A schema that checks the same value twice at each of its levels."""
    defs: dict[str, Any] = {
        f"d{at}": {"anyOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(depth)
    }
    return {"$defs": {**defs, f"d{depth}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        (json.dumps("a" * 64 + "!"), {"pattern": "^(a|aa)+$"}),
        (json.dumps({"a" * 64 + "!": 1}), {"patternProperties": {"^(a|aa)+$": {}}}),
        ('"x"', anyof_bomb(60)),
    ],
)
def test_a_schema_that_would_take_for_ever_is_given_up(
    text: str, schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_answer, "CHECK_SECONDS", 0.05)
    assert fault_of(text, schema) == "to check it against the schema takes too long"


@pytest.mark.parametrize(
    "text",
    ['```json\n{"a": 1}\n```', '```\n{"a": 1}```', ' {"a": 1} ', '\n```json \n{"a": 1}\n``` '],
)
def test_a_fence_around_json_is_no_part_of_it(text: str) -> None:
    assert json_within(text) == '{"a": 1}'


def test_a_fence_is_removed_only_around_the_whole_text() -> None:
    assert json_within("see ```json\n{}\n``` there") == "see ```json\n{}\n``` there"
