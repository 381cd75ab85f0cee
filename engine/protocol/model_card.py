"""Model card: the model as it was loaded, which every result names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """The provenance of a result: the model as it was loaded."""

    alias: str
    checkpoint: str
    revision: str | None  # a commit, or a short hash over configuration and weights
    family: Literal["seq2seq", "causal", "fake"]
    engine: str  # inflight, exact, ctranslate2, vllm or fake
    model_type: str
    device: str
    dtype: str
    max_context_tokens: int | None  # None: the checkpoint names no limit
    num_parameters: int
    weight_files: Mapping[str, str] = field(default_factory=dict)  # name -> SHA-256
    weights: str | None = None  # how they were changed at load; None: not at all
    licence: str | None = None  # None: the checkpoint names none
    engine_reason: str | None = None  # why this engine, and its limits; None: as configured
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        data = {each.name: getattr(self, each.name) for each in fields(self)}
        data["weight_files"] = dict(self.weight_files)
        data["versions"] = dict(self.versions)
        return data
