"""compressed-tensors: packed integers, or floats of eight or four bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.quantization.bits import FP4, nibbles, powers, spread, unpacked
from engine.quantization.fp8 import FP8

COMPANIONS = (
    ".weight_scale", ".weight_zero_point", ".weight_g_idx", ".weight_shape",
    ".weight_global_scale", ".input_scale", ".input_zero_point", ".input_global_scale",
    ".output_scale", ".output_zero_point", ".k_scale", ".v_scale", ".q_scale",
)  # fmt: skip
FORMATS = (
    "dense", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized",
    "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mixed-precision",
)  # fmt: skip
BITS = (4, 8)


def why_not(settings: Mapping[str, Any]) -> str | None:
    """The settings that are not supported here, in words; None if all are."""
    groups = settings.get("config_groups") or {}
    formats = {settings.get("format"), *(each.get("format") for each in groups.values())}
    for each in sorted(filter(None, formats)):
        if each not in FORMATS:
            return f"the format {each} of compressed-tensors is not unpacked here"
    sparse = (settings.get("sparsity_config") or {}).get("format", "dense")
    if sparse != "dense":
        return f"the sparse format {sparse} of compressed-tensors is not unpacked here"
    if settings.get("transform_config"):
        return "its weights are rotated (transform_config), which is not undone here"
    return None


def unpack(
    name: str, packed: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[str, Tensor] | None:
    base, _, last = name.rpartition(".")
    scales = packed.get(f"{base}.weight_scale")
    if scales is None or last not in ("weight", "weight_packed"):
        return None
    weight = packed[name]
    if last == "weight_packed" and weight.dtype == torch.int32:
        restored = in_words(base, packed, settings)
    elif last == "weight_packed":
        restored = floats_of_four_bits(weight, packed, base, settings)
    elif weight.dtype == torch.int8:
        zeros = packed.get(f"{base}.weight_zero_point")
        restored = of_integers(weight.float(), zeros, base, packed, settings)
    elif weight.dtype in FP8:
        restored = weight.float() * spread(scales.float(), weight.shape, blocks_of(settings))
    else:
        raise ValueError(f"numbers of {weight.dtype}")
    return f"{base}.weight", restored


def in_words(base: str, packed: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """Unpack signed integers that are stored with an offset of half their range."""
    num_rows, num_columns = packed[f"{base}.weight_shape"].tolist()
    words = packed[f"{base}.weight_packed"]
    num_bits = next(
        (each for each in BITS if -(-num_columns // (32 // each)) == words.shape[1]), None
    )
    if num_bits is None:
        raise ValueError(f"{num_columns} numbers in {words.shape[1]} words")
    half = 2 ** (num_bits - 1)
    values = unpacked(words, num_bits, dim=1)[:, :num_columns] - half
    zeros = packed.get(f"{base}.weight_zero_point")
    if zeros is not None and zeros.dtype == torch.int32:
        zeros = unpacked(zeros, num_bits, dim=0)[:num_rows] - half
    return of_integers(values.float(), zeros, base, packed, settings)


def of_integers(
    values: Tensor,
    zeros: Tensor | None,
    base: str,
    packed: Mapping[str, Tensor],
    settings: Mapping[str, Any],
) -> Tensor:
    scales = packed[f"{base}.weight_scale"].float()
    zeros = torch.zeros_like(scales) if zeros is None else zeros.float()
    groups = packed.get(f"{base}.weight_g_idx")
    if groups is not None and bool((groups >= 0).all()):
        groups = groups.long()
        return (values - zeros[:, groups]) * scales[:, groups]
    blocks = blocks_of(settings)
    return (values - spread(zeros, values.shape, blocks)) * spread(scales, values.shape, blocks)


def floats_of_four_bits(
    weight: Tensor, packed: Mapping[str, Tensor], base: str, settings: Mapping[str, Any]
) -> Tensor:
    """Unpack NVFP4 (scales have a common scale) or MXFP4 (scales are powers of two)."""
    values = FP4[nibbles(weight)]
    scales = powers(packed[f"{base}.weight_scale"])
    if (of_all := packed.get(f"{base}.weight_global_scale")) is not None:
        scales = scales / of_all.float()
    return values * spread(scales, values.shape, blocks_of(settings))


def blocks_of(settings: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The possible block sizes (rows, columns) that share a scale, over all groups of modules."""
    blocks = []
    for group in (settings.get("config_groups") or {}).values():
        weights = group.get("weights") or {}
        if structure := weights.get("block_structure"):
            rows, columns = structure.split("x") if isinstance(structure, str) else structure
            blocks.append((int(rows), int(columns)))
        elif (size := weights.get("group_size")) and size > 0:
            blocks.append((1, int(size)))
    return blocks
