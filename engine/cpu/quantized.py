"""Weights in int8 or bfloat16, for a CPU: less to read in a step, and quicker products.

What is not a product stays in float32. An answer may differ from that in float32; how
often is in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from engine.cpu.linear import ROWS_HINT, PackedLinear, refuse_width
from engine.cpu.optional import compiled

AMX_ROWS = 32
ZERO = 128  # the byte that stands for 0.0 in rounded rows


class Int8Linear(nn.Module):
    """Weights in int8 with a scale for each output, rows rounded with a scale for each row.

    The products are of integers and so exact, and no row's scale looks at another row: an
    answer is the same, bit by bit, whatever shares its step.
    """

    MIN_WEIGHTS: ClassVar[int] = PackedLinear.MIN_WEIGHTS

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: (out, in) float32"""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.weight = weight.new_empty(0)  # some models look at the type of their weights
        scales = weight.abs().amax(dim=1).clamp_(min=1e-30) / 127
        # oneDNN reads it row by row, whatever its strides say; GPT-2's are transposed.
        rounded = torch.round(weight / scales[:, None]).to(torch.int8).contiguous()
        self.scales = scales
        self.zeros = torch.zeros(self.out_features, dtype=torch.int32)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, [ROWS_HINT, self.in_features])
        self.round_rows = rounding()

    def forward(self, x: Tensor) -> Tensor:
        refuse_width(x, self.in_features)
        rows, row_scales = self.round_rows(x.reshape(-1, self.in_features))
        y = torch.ops.onednn.qlinear_pointwise(
            rows, 1.0, ZERO, self.packed, self.scales, self.zeros, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        y = y.mul_(row_scales)
        if self.bias is not None:
            y = y.add_(self.bias)
        return y.view(*x.shape[:-1], self.out_features)  # type: ignore[no-any-return]  # a tensor


class HalfLinear(nn.Module):
    """Weights and what they are multiplied with in bfloat16, sums in float32."""

    MIN_WEIGHTS: ClassVar[int] = PackedLinear.MIN_WEIGHTS

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: (out, in) float32"""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.weight = weight.new_empty(0)
        half = weight.to(torch.bfloat16).contiguous()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(half, ROWS_HINT)

    def forward(self, x: Tensor) -> Tensor:
        refuse_width(x, self.in_features)
        half = x.reshape(-1, self.in_features).to(torch.bfloat16)
        if torch.cpu._is_amx_tile_supported():
            y = torch.cat([self._product_of_few(rows) for rows in half.split(AMX_ROWS)])
        else:
            y = torch.ops.mkldnn._linear_pointwise(half, self.packed, None, "none", [], "")
        y = y.to(torch.float32).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y.add_(self.bias)

    def _product_of_few(self, rows: Tensor) -> Tensor:
        """rows: (at most AMX_ROWS, in) bfloat16; returns (rows, out) in bfloat16.

        With AMX, oneDNN adds the same row up in another order where more rows are beside it, or
        an odd number of them. So it always gets the same number.
        """
        padded = nn.functional.pad(rows, (0, 0, 0, AMX_ROWS - len(rows)))
        y = torch.ops.mkldnn._linear_pointwise(padded, self.packed, None, "none", [], "")
        return y[: len(rows)]  # type: ignore[no-any-return]  # a tensor


def rounding() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The compiled one, or the same by torch."""
    module = compiled("kernels.quantize_rows")
    return round_rows if module is None else module.round_rows


def round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows: (rows, width) float32; returns the same in uint8, and (rows, 1) float32 scales."""
    scales = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30) / 127
    return torch.floor(rows * (1 / scales) + (ZERO + 0.5)).to(torch.uint8), scales
