"""FP8: eight-bit floats with a scale for each block, each row or the whole tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.quantization.bits import powers, spread

COMPANIONS = (
    "_scale_inv", ".weight_scale", ".input_scale", ".activation_scale", ".input_scale_ub",
    ".k_scale", ".v_scale", ".q_scale",
    "_proj_scale",  # of experts that lie in one tensor
)  # fmt: skip
BLOCK = (128, 128)  # where the settings name none, as transformers has it
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def unpack(
    name: str, packed: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[str, Tensor] | None:
    scales = packed.get(f"{name}_scale_inv", packed.get(f"{name}_scale"))
    if scales is None:
        return None
    weight = packed[name]
    if weight.dtype not in FP8:
        raise ValueError(f"numbers of {weight.dtype}")
    default = BLOCK if settings.get("quant_method") == "fp8" else None
    block = settings.get("weight_block_size", default)
    blocks = [] if block is None else [(block[0], block[1])]
    return name, weight.float() * spread(powers(scales), weight.shape, blocks)
