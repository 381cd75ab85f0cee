"""MXFP4: the experts of gpt-oss, four-bit floats with a power-of-two scale for each 32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from engine.quantization.bits import FP4, nibbles, powers

COMPANIONS = ("_scales",)


def unpack(
    name: str, packed: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[str, Tensor] | None:
    """Unpack the experts' blocks, (experts, outputs, groups, 16), to (experts, inputs, outputs)."""
    if not name.endswith("_blocks"):
        return None
    base = name.removesuffix("_blocks")
    weight = FP4[nibbles(packed[name])] * powers(packed[f"{base}_scales"])[..., None]
    return base, weight.flatten(-2).transpose(-1, -2).contiguous()
