"""Limits: chooses the limits that a spec leaves open, with reasons. A pure function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from engine.protocol.engine_spec import EngineSpec
from engine.protocol.model_settings import bytes_of

AS_CONFIGURED = "as the configuration says"
CPU_SEQUENCES = 32
GPU_SEQUENCES = 128
STEP_TOKENS = 8192
MAX_PROMPT_TOKENS = 32_768  # of a model that takes more, unless its settings say so
CACHE_SHARE = 0.25  # of the memory that is free once the weights are loaded


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine's resources for a loaded model."""

    device: str  # cpu or cuda
    free_bytes: int
    max_context_tokens: int | None = None  # of the checkpoint, if it names a limit
    bytes_per_token: int | None = None  # of keys and values; None: none are kept between steps
    # How many tokens of keys and values fit on a GPU, given a spec with the other limits chosen.
    max_paged_tokens: Callable[[EngineSpec], int] | None = None


@dataclass(frozen=True, slots=True)
class Sized:
    """A spec with every limit chosen.

    reasons: by setting, in words that follow the value
    """

    spec: EngineSpec
    reasons: Mapping[str, str]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(EngineSpec.from_json(data["spec"]), data["reasons"])

    def to_json(self) -> dict[str, Any]:
        return {"spec": self.spec.to_json(), "reasons": dict(self.reasons)}


def sized(spec: EngineSpec, machine: Machine, engine: str, why_engine: str) -> Sized:
    """Choose the limits that `spec` leaves open.

    engine, why_engine: the chosen backend and the reason
    """
    settings: dict[str, Any] = {"engine": engine}
    reasons = {"engine": why_engine if spec.engine == "auto" else AS_CONFIGURED}

    def choose(name: str, value: int, reason: str) -> None:
        configured = getattr(spec, name)
        settings[name] = value if configured is None else configured
        reasons[name] = reason if configured is None else AS_CONFIGURED

    if machine.device == "cpu":
        choose("max_sequences", CPU_SEQUENCES, "a CPU is busy with so many rows")
    else:
        choose("max_sequences", GPU_SEQUENCES, "rows cost a GPU little until there are many")
    context = min(machine.max_context_tokens or 0, MAX_PROMPT_TOKENS)
    if context > STEP_TOKENS:
        choose("max_step_tokens", context, "the longest prompt that the checkpoint takes")
    else:
        choose("max_step_tokens", STEP_TOKENS, "of which at most 512 join while others wait")
    settings["max_step_tokens"] = max(settings["max_step_tokens"], settings["max_sequences"])
    if machine.bytes_per_token is not None:
        room = cache_tokens(replace(spec, **settings), machine, machine.bytes_per_token)
        choose("max_cache_tokens", *room)
    return Sized(replace(spec, **settings), reasons)


def cache_tokens(spec: EngineSpec, machine: Machine, bytes_per_token: int) -> tuple[int, str]:
    """The number of tokens that the KV cache may hold, and the reason."""
    if spec.kv_cache is None and machine.max_paged_tokens is not None:
        room, reason = (
            machine.max_paged_tokens(spec),
            f"gpu_memory_utilization = {spec.gpu_memory_utilization}",
        )
        if machine.max_context_tokens is not None and spec.max_sequences is not None:
            # Room for a prompt and an answer for each row; the rest of memory is for `generate`.
            most = 2 * spec.max_sequences * machine.max_context_tokens
            if most < room:
                return most, f"as much as {spec.max_sequences} sequences can be"
        return max(room, 1), reason
    if isinstance(spec.kv_cache, str):
        room, reason = bytes_of(spec.kv_cache), f"kv_cache = {spec.kv_cache}"
    else:
        share = CACHE_SHARE if spec.kv_cache is None else spec.kv_cache
        room = int(share * machine.free_bytes)
        reason = f"{share:.0%} of the {in_words(machine.free_bytes)} that are free"
    num_tokens = max(room // bytes_per_token, 1)
    return num_tokens, f"{reason}, at {in_words(bytes_per_token)} a token"


def in_words(num_bytes: int) -> str:
    """A size in words, such as `1.5 GiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} B"
