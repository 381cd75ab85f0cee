"""GPTQ and AWQ: four- or eight-bit integers with a scale and a zero for each group of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.quantization.bits import unpacked, width_of_blocks

COMPANIONS = (".qzeros", ".scales", ".g_idx")
BITS = (2, 4, 8)
VERSIONS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
# AWQ's order of the outputs that share a word.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def gptq(
    name: str, packed: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[str, Tensor] | None:
    """Unpack a GPTQ weight. A word holds several inputs of one output.

    Zeros are stored minus one, in all but the second version of the format.
    """
    if not name.endswith(".qweight"):
        return None
    base = name.removesuffix(".qweight")
    scales, zero_words = packed[f"{base}.scales"], packed[f"{base}.qzeros"]
    # Modules may differ from what the configuration says of all.
    num_bits = 32 * zero_words.shape[1] // scales.shape[1]
    if num_bits not in BITS:
        raise ValueError(f"{num_bits} bits")
    values = unpacked(packed[name], num_bits, dim=0)
    zeros = unpacked(zero_words, num_bits, dim=1)
    if version_of(settings) != "gptq_v2":
        zeros = (zeros + 1) & (2**num_bits - 1)
    groups = packed.get(f"{base}.g_idx")
    if groups is None:
        groups = groups_of(values.shape[0], scales.shape[0], settings)
    return f"{base}.weight", restored(values, zeros, scales, groups.long())


def awq(
    name: str, packed: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[str, Tensor] | None:
    """Unpack an AWQ weight. A word holds several outputs of one input, in a fixed permutation."""
    if not name.endswith(".qweight"):
        return None
    base = name.removesuffix(".qweight")
    scales = packed[f"{base}.scales"]
    values, zeros = (
        in_order(unpacked(packed[each], 4, dim=1)) for each in (name, f"{base}.qzeros")
    )
    groups = groups_of(values.shape[0], scales.shape[0], settings)
    return f"{base}.weight", restored(values, zeros, scales, groups)


def in_order(values: Tensor) -> Tensor:
    place = torch.tensor(AWQ_ORDER).argsort()
    return values.view(values.shape[0], -1, len(AWQ_ORDER))[..., place].flatten(1)


def groups_of(num_inputs: int, num_groups: int, settings: Mapping[str, Any]) -> Tensor:
    """The group of each input: (num_inputs,)."""
    size = settings.get("group_size", settings.get("q_group_size")) or -1
    # Modules may differ from what the configuration says of all.
    sizes = [size] if -(-num_inputs // size) == num_groups else []
    return torch.arange(num_inputs) // width_of_blocks(num_inputs, num_groups, sizes)


def version_of(settings: Mapping[str, Any]) -> str | None:
    """The version of the word layout, under the names of several libraries; None: the first."""
    if settings.get("is_marlin_format"):
        return "marlin"
    if settings.get("backend") == "llm-awq":
        return "llm-awq"
    named = (settings.get(name) for name in ("version", "checkpoint_format", "format"))
    version = next((each for each in named if each is not None), None)
    return None if version is None else str(getattr(version, "value", version)).lower()


def restored(values: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor) -> Tensor:
    """Return the weight, (outputs, inputs) float32.

    values:        (inputs, outputs)
    zeros, scales: (groups, outputs)
    """
    weight = (values - zeros[groups]).float() * scales.float()[groups]
    return weight.T.contiguous()
