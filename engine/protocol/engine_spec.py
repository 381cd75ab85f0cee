"""EngineSpec: the checkpoint that an engine process loads, and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from engine.protocol.model_settings import ModelSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec(ModelSettings):
    """The settings of one engine process: those of its model, and its share of the machine."""

    replica: int = 0  # which of its model's processes it is
    max_held: int = 4096  # requests without an output; beyond it the pipe is not read
    languages: tuple[str, ...] = ()  # user's codes; empty: all that the checkpoint knows

    def __post_init__(self) -> None:
        # Without super(): slots=True replaces the class that super() would refer to.
        ModelSettings.__post_init__(self)
        self._at_least_one("max_held")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        values = dict(data)
        values["languages"] = tuple(values.get("languages", ()))
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        data = {each.name: getattr(self, each.name) for each in fields(self)}
        data["prompt"] = dict(self.prompt)
        data["chat_template_kwargs"] = dict(self.chat_template_kwargs)
        data["languages"] = list(self.languages)
        return data
