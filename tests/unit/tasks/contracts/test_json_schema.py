"""Invalid schemas, and those that could keep a worker busy for ever, are refused on submission."""

from typing import Any

import pytest

from tasks.chat import ChatContract
from tasks.contracts.json_schema import (
    MAX_PATTERN_CHARACTERS,
    MAX_SCHEMA_CHARACTERS,
    fault_of_schema,
)
from tasks.errors import ContractError
from tasks.generate import GenerateContract

CHAT = {"messages": [{"role": "user", "content": "a"}]}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
        {"properties": {"$ref": {"type": "string"}, "pattern": {"const": "("}}},
        {"enum": [{"$ref": "http://nowhere/x"}, None]},
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "integer"},
        {"$id": "http://somewhere/x", "$defs": {"a": {}}, "$ref": "#/$defs/a"},
        {"pattern": "^(a+)+$"},
        nested(20),
    ],
)
def test_a_schema_is_taken_and_kept_as_it_came(schema: dict[str, Any]) -> None:
    assert fault_of_schema(schema) is None
    contract = GenerateContract.parse({"text": "a", "json_schema": schema})
    assert contract.work() == {"text": "a", "json_schema": schema}


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "secret"}, r"is no JSON schema: \$.type"),
        ({"properties": {"age": {"type": 7}}}, r"is no JSON schema: \$.properties.age.type"),
        ({"required": "a"}, "is no JSON schema"),
        ({"$ref": "#"}, "refers to itself without going deeper"),
        (
            {
                "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}},
                "properties": {"x": {"$ref": "#/$defs/a"}},
            },
            "refers to itself without going deeper",
        ),
        ({"$ref": "http://somewhere/x"}, "refers to another document"),
        ({"items": [{"$ref": "file:///etc/passwd"}]}, "."),
        ({"$ref": "#/$defs/secret"}, "refers to a part that it does not have"),
        ({"pattern": "("}, "is no JSON schema"),
        ({"patternProperties": {"(": {}}}, "is no JSON schema"),
        ({"pattern": "a" * (MAX_PATTERN_CHARACTERS + 1)}, "has a pattern of 1001 characters"),
        ({"const": "a" * MAX_SCHEMA_CHARACTERS}, "characters as JSON"),
        (nested(100), "is nested deeper than 64 levels"),
        (nested(100_000), "nested"),
        ({"const": float("nan")}, "NaN"),
        ({"const": "\ud83d"}, "half a character"),
        ({"const": {1, 2}}, "holds something that JSON has not"),
        ({"const": "a\x00"}, "NUL byte"),
        ("secret", "must be a JSON schema, which is an object"),
        ([], "must be a JSON schema"),
        (True, "must be a JSON schema"),
        (7, "must be a JSON schema"),
    ],
)
def test_a_schema_that_is_none_is_refused_without_its_texts(schema: Any, says: str) -> None:
    for contract, fields in ((GenerateContract, {"text": "a"}), (ChatContract, CHAT)):
        with pytest.raises(ContractError, match=says) as refused:
            contract.parse({**fields, "json_schema": schema})
        assert "json_schema" in str(refused.value)
        assert "secret" not in str(refused.value)


def test_json_schema_and_json_object_exclude_each_other() -> None:
    with pytest.raises(ContractError, match="json_object: is given beside json_schema"):
        ChatContract.parse({**CHAT, "json_schema": {}, "json_object": True})
    assert ChatContract.parse({**CHAT, "json_object": True}).work()["json_object"] is True


def test_a_source_of_texts_has_its_schema_in_one() -> None:
    text = '{"type": "integer"}'
    fields = {"text": "a", "json_schema": text}
    assert GenerateContract.parse(fields, exact_types=False).json_schema == {"type": "integer"}
    for wrong in (fields, {**fields, "json_schema": "{"}, {**fields, "json_schema": "[]"}):
        with pytest.raises(ContractError, match="must be a JSON schema"):
            GenerateContract.parse(wrong, exact_types=wrong is fields)
