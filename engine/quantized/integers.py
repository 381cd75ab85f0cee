"""Integers: GPTQ and AWQ, four or eight bits with a scale and a zero for each group of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.quantized.bits import unpacked

COMPANIONS = (".qzeros", ".scales", ".g_idx")
BITS = (2, 4, 8)
# AWQ's order of the outputs that share a word.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def gptq(
    name: str, packed: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[str, Tensor] | None:
    """A word holds inputs, of one output; the zeros are one less than they stand for, in all but
    the second version."""
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
    if settings.get("checkpoint_format") != "gptq_v2":
        zeros = (zeros + 1) & (2**num_bits - 1)
    groups = packed.get(f"{base}.g_idx")
    if groups is None:
        groups = groups_of(values.shape[0], scales.shape[0])
    return f"{base}.weight", restored(values, zeros, scales, groups.long())


def awq(
    name: str, packed: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[str, Tensor] | None:
    """A word holds outputs, of one input, in an order of their own."""
    if not name.endswith(".qweight"):
        return None
    base = name.removesuffix(".qweight")
    scales = packed[f"{base}.scales"]
    values, zeros = (
        in_order(unpacked(packed[each], 4, dim=1)) for each in (name, f"{base}.qzeros")
    )
    groups = groups_of(values.shape[0], scales.shape[0])
    return f"{base}.weight", restored(values, zeros, scales, groups)


def in_order(values: Tensor) -> Tensor:
    place = torch.tensor(AWQ_ORDER).argsort()
    return values.view(values.shape[0], -1, len(AWQ_ORDER))[..., place].flatten(1)


def groups_of(num_inputs: int, num_groups: int) -> Tensor:
    """The group of each input."""
    return torch.arange(num_inputs) // -(-num_inputs // num_groups)


def restored(values: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor) -> Tensor:
    """(outputs, inputs) float32. values: (inputs, outputs); zeros, scales: (groups, outputs)"""
    weight = (values - zeros[groups]).float() * scales.float()[groups]
    return weight.T.contiguous()
