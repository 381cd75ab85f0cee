"""Linear layers with rounded weights, int8 or bfloat16: less memory to read, and faster products.

All but the products stays in float32. An answer may differ from that in float32;
docs/performance.md says how often.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from engine.cpu.linear import ROWS_HINT, PackedLinear, refuse_width
from engine.cpu.self_test import agrees, kernel_module

AMX_ROWS = 32
# Steps of a rounded row to each side of zero: of eight bits, and of seven.
ALL_STEPS, HALF_STEPS = 127, 63
RoundRows = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # as `round_rows`


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, a scale for each output and a scale for each row.

    Products of integers are exact, and a row's scale depends on no other row, so an answer has the
    same bits alone and in a batch.
    """

    MIN_WEIGHTS: ClassVar[int] = PackedLinear.MIN_WEIGHTS

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: (out, in) float32; bias: (out,)"""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.weight = weight.new_empty(0)  # some models look at the type of their weights
        scales = weight.abs().amax(dim=1).clamp_(min=1e-30) / 127
        # oneDNN's prepack ignores strides, and GPT-2's weights are transposed.
        rounded = torch.round(weight / scales[:, None]).to(torch.int8).contiguous()
        self.scales = scales
        self.zeros = torch.zeros(self.out_features, dtype=torch.int32)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, [ROWS_HINT, self.in_features])
        self.num_steps = row_steps()
        self.round_rows = self.rounding()

    @staticmethod
    def rounding() -> RoundRows:
        """Return the function that rounds rows."""
        return compiled_rounding()

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) float32; returns (..., out)"""
        refuse_width(x, self.in_features)
        rows, row_scales = self.round_rows(x.reshape(-1, self.in_features), self.num_steps)
        y = integer_product(rows, self.num_steps + 1, self.packed, self.scales, self.zeros)
        y = y.mul_(row_scales)
        if self.bias is not None:
            y = y.add_(self.bias)
        return y.view(*x.shape[:-1], self.out_features)


class PlainInt8Linear(Int8Linear):
    """An Int8Linear without compiled code of ours."""

    @staticmethod
    def rounding() -> RoundRows:
        return round_rows


def integer_product(
    rows: Tensor, zero: int, packed: Tensor, scales: Tensor, zeros: Tensor
) -> Tensor:
    """Multiply bytes by packed int8 weights.

    rows:    (rows, in) uint8, with zero stored as `zero`
    scales:  (out,) float32
    zeros:   (out,) int32: the number that stands for 0 in the weights
    returns: (rows, out) float32
    """
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, zero, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


@cache
def row_steps() -> int:
    """Return the number of steps on each side of zero to which rows are rounded.

    Without VNNI (AVX2, and AVX-512 before it) a processor adds two products in 16 bits. Two
    products of 255 by 127 overflow that, and the answers of a model with large activations become
    noise. Rows of seven bits leave every sum exact.
    """
    width = 64
    weight = torch.full((width, width), ALL_STEPS, dtype=torch.int8)
    rows = torch.full((1, width), 2 * ALL_STEPS + 1, dtype=torch.uint8)
    packed = torch.ops.onednn.qlinear_prepack(weight, [ROWS_HINT, width])
    zeros = torch.zeros(width, dtype=torch.int32)
    found = integer_product(rows, ALL_STEPS + 1, packed, torch.ones(width), zeros)
    return ALL_STEPS if bool((found == width * ALL_STEPS**2).all()) else HALF_STEPS


class HalfLinear(nn.Module):
    """A linear layer with bfloat16 weights and rows, and float32 sums.

    It needs `has_bfloat16_products`.
    """

    MIN_WEIGHTS: ClassVar[int] = PackedLinear.MIN_WEIGHTS

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: (out, in) float32; bias: (out,)"""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.weight = weight.new_empty(0)
        half = weight.to(torch.bfloat16).contiguous()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(half, ROWS_HINT)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) float32; returns (..., out) float32"""
        refuse_width(x, self.in_features)
        half = x.reshape(-1, self.in_features).to(torch.bfloat16)
        if torch.cpu._is_amx_tile_supported():
            y = torch.cat([self._product_of_few(rows) for rows in half.split(AMX_ROWS)])
        else:
            y = torch.ops.mkldnn._linear_pointwise(half, self.packed, None, "none", [], "")
        y = y.to(torch.float32).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y.add_(self.bias)

    def _product_of_few(self, rows: Tensor) -> Tensor:
        """Multiply few rows. rows: (at most AMX_ROWS, in) bfloat16; returns (rows, out) bfloat16

        With AMX, oneDNN sums a row in another order if there are more rows, or an odd number of
        them. So rows are always padded to the same number.
        """
        padded = nn.functional.pad(rows, (0, 0, 0, AMX_ROWS - len(rows)))
        y = torch.ops.mkldnn._linear_pointwise(padded, self.packed, None, "none", [], "")
        return y[: len(rows)]  # type: ignore[no-any-return]  # a tensor


def has_bfloat16_products() -> bool:
    """Return whether oneDNN multiplies bfloat16 on this processor: with AVX-512 or AVX-NE-CONVERT.

    Elsewhere torch's own product is six times slower than in float32.
    """
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def compiled_rounding() -> RoundRows:
    """Return the compiled `round_rows` if it agrees with torch's, else torch's."""
    module = kernel_module("kernels.quantize_rows")
    if module is None:
        return round_rows
    rows = torch.randn((3, 70), generator=torch.Generator().manual_seed(0))

    num_steps = row_steps()

    def restored(rounding: RoundRows) -> list[Tensor]:
        rounded, scales = rounding(rows, num_steps)
        return [(rounded.float() - (num_steps + 1)) * scales]

    # A number half-way between two bytes may be rounded to either.
    step = float(rows.abs().max()) / num_steps
    agreed = agrees(
        "row rounding", lambda: restored(module.round_rows), lambda: restored(round_rows), step
    )
    return module.round_rows if agreed else round_rows


def round_rows(rows: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """Round each row by its own scale to `num_steps` on each side of zero.

    rows:    (rows, width) float32
    returns: the same in uint8, with zero stored as num_steps + 1, and (rows, 1) float32 scales
    """
    scales = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30) / num_steps
    return torch.floor(rows * (1 / scales) + (num_steps + 1.5)).to(torch.uint8), scales
