"""bitsandbytes: four-bit indices into a table of values, or int8 with a scale for each row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from engine.quantization.bits import nibbles

STATE = ".weight.quant_state.bitsandbytes__"
ROWS = 0  # the row-major one of the possible int8 layouts
COMPANIONS = (
    ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map",
    f"{STATE}nf4", f"{STATE}fp4", ".SCB", ".weight_format",
)  # fmt: skip


def unpack(
    name: str, packed: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[str, Tensor] | None:
    base = name.removesuffix(".weight")
    if base == name:
        return None
    if (scales := packed.get(f"{base}.SCB")) is not None:
        if (order := packed.get(f"{base}.weight_format")) is not None and int(order) != ROWS:
            raise ValueError("its numbers are in an order for one kind of GPU")
        return name, packed[name].float() * (scales.float()[:, None] / 127)
    for kind in ("nf4", "fp4"):
        if (state := packed.get(f"{base}{STATE}{kind}")) is not None:
            return name, four_bits(name, packed, json.loads(bytes(state.tolist())))
    return None


def four_bits(name: str, packed: Mapping[str, Tensor], state: Mapping[str, Any]) -> Tensor:
    """Unpack a four-bit weight to float32, of the shape that the state names."""
    scales = packed[f"{name}.absmax"]
    if (table := packed.get(f"{name}.nested_quant_map")) is not None:
        # The scales are packed themselves.
        nested = packed[f"{name}.nested_absmax"].float()
        nested = nested.repeat_interleave(state["nested_blocksize"])[: scales.numel()]
        scales = table.float()[scales.long()] * nested + state["nested_offset"]
    values = packed[f"{name}.quant_map"].float()[nibbles(packed[name].flatten(), high_first=True)]
    spread = scales.float().repeat_interleave(state["blocksize"])[: values.numel()]
    num = 1
    for size in state["shape"]:
        num *= size
    return (values * spread)[:num].view(state["shape"])
