"""JSON answers: the fields of tasks whose answer may have to be JSON."""

import json
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from tasks.contracts.contract import Contract, TruthValue, clash, reads_texts


def read_schema(value: Any, info: ValidationInfo) -> Any:
    """Parse a schema that is given as a text, if the source has only texts."""
    if value is None or isinstance(value, dict):
        return value
    if isinstance(value, str) and reads_texts(info):
        try:
            schema = json.loads(value)
        except (RecursionError, ValueError):
            schema = None
        if isinstance(schema, dict):
            return schema
    raise PydanticCustomError("no_schema", "must be a JSON schema, which is an object")


class JsonAnswerContract(Contract, frozen=True):
    """A task whose answer can be required to be JSON."""

    json_schema: Annotated[dict[str, Any], BeforeValidator(read_schema)] | None = None
    json_object: TruthValue | None = None  # any object

    @model_validator(mode="after")
    def _schema_is_one(self) -> Self:
        if self.json_schema is None:
            return self
        if self.json_object:
            raise clash("json_object", "is given beside json_schema; leave it out")
        # The import brings a library that other jobs do not need.
        from tasks.contracts.json_schema import fault_of_schema

        fault = fault_of_schema(self.json_schema)
        if fault is not None:
            raise clash("json_schema", fault)
        return self
