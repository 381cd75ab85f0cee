"""Sampling params: how an answer is decoded, under the names of `transformers`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Self

from annotated_types import Interval


@dataclass(frozen=True, kw_only=True)  # without slots: contracts inherit the fields
class SamplingParams:
    """Decoding parameters, named as in `transformers`. None: the model's own value.

    This is the only list of them. `tasks.contracts.contract` inherits the fields and checks the
    ranges, and `engine.sampling.resolve_params` fills in the model's values.
    """

    max_new_tokens: Annotated[int, Interval(ge=1, le=100_000)] | None = None
    min_new_tokens: Annotated[int, Interval(ge=0, le=100_000)] | None = None
    # Decoder-only: the prompt included; encoder-decoder: tokens of the decoder.
    max_length: Annotated[int, Interval(ge=1, le=1_000_000)] | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Interval(ge=0, le=100)] | None = None
    top_k: Annotated[int, Interval(ge=1, le=1_000_000)] | None = None
    top_p: Annotated[float, Interval(gt=0, le=1)] | None = None
    num_beams: Annotated[int, Interval(ge=1, le=64)] | None = None
    length_penalty: Annotated[float, Interval(ge=-100, le=100)] | None = None
    early_stopping: bool | None = None
    repetition_penalty: Annotated[float, Interval(gt=0, le=100)] | None = None
    no_repeat_ngram_size: Annotated[int, Interval(ge=0, le=1000)] | None = None
    num_return_sequences: Annotated[int, Interval(ge=1, le=64)] | None = None
    seed: Annotated[int, Interval(ge=0, lt=2**63)] | None = None
    stop: tuple[str, ...] = field(default_factory=tuple)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        stop = tuple(data.get("stop", ()))
        return cls(**{**data, "stop": stop})

    def to_json(self) -> dict[str, Any]:
        """The parameters that are not None."""
        data = {
            name: value
            for name in PARAMS
            if name != "stop" and (value := getattr(self, name)) is not None
        }
        if self.stop:
            data["stop"] = list(self.stop)
        return data


PARAMS = tuple(each.name for each in fields(SamplingParams))
