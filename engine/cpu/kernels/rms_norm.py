"""RMSNorm: the norm of LLaMA and T5, in one pass over a row.

x / sqrt(mean(x^2) + eps) * weight; Zhang and Sennrich, 2019 (arXiv:1910.07467). torch takes six
passes and wakes the threads for each.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numba import carray
from torch import Tensor, nn

from engine.cpu.captured_ops import captured_call
from engine.cpu.kernels.decode_attention import add
from engine.cpu.thread_pool import (
    FLOAT_BYTES,
    compile_parallel,
    double_of_bits,
    fast,
    floats_at,
    own_share,
    threads_for,
)

# A row may have several heads, one after the other, that are normalized each by itself, and more
# behind them: ROW_STRIDE is from a row to the next, in floats. RESIDUAL: rows that are added to the
# normalized ones; 0: none.
ROWS, WEIGHT, OUT, NUM_ROWS, NUM_HEADS, WIDTH, ROW_STRIDE, EPS_BITS, RESIDUAL = range(9)
NUM_ARGUMENTS = 9
MIN_VALUES_A_THREAD = 16_384  # below it waking a thread costs more


class RMSNorm(nn.Module):
    """Replaces a norm of `transformers`, with its own weight."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        """weight: (width,) float32"""
        super().__init__()
        self.weight = weight
        self.variance_epsilon = eps

    @classmethod
    def like(cls, module: Any, offset: float = 0.0) -> Self:
        """Return an RMSNorm with the weight of a `transformers` module.

        offset: added to the weight, as Gemma's norms do
        """
        weight = module.weight
        if offset:
            weight = nn.Parameter(weight.detach() + offset, requires_grad=False)
        return cls(weight, eps_of(module))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width) float32; returns the same shape"""
        return rms_norm(x, self.weight, self.variance_epsilon)


def eps_of(module: Any) -> float:
    """Return the epsilon of a `transformers` norm."""
    eps = getattr(module, "variance_epsilon", None)
    return float(module.eps if eps is None else eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: (..., width) float32; weight: (width,); returns the normalized rows."""
    assert x.dtype == torch.float32
    if x.shape[-1:] != weight.shape:
        raise ValueError(f"rows of {x.shape[-1]} for weights of {len(weight)}")
    x = x.contiguous()
    out = torch.empty_like(x)
    captured_call(rms_norm_rows, x, weight, eps, out)
    return out


def rms_norm_rows(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """Write the normalized rows into `out`. x, out: (..., width) float32, contiguous"""
    width, num_values = x.shape[-1], x.numel()
    run(
        threads_for(num_values, MIN_VALUES_A_THREAD), x.data_ptr(), weight.data_ptr(),
        out.data_ptr(), num_values // width, 1, width, width, eps, 0,
    )  # fmt: skip


@fast
def rms_norm_row(row: Any, weight: Any, out: Any, width: Any, eps: Any) -> None:
    total = np.float32(0)
    for each in range(width):
        total += row[each] * row[each]
    scale = np.float32(1) / np.sqrt(total / np.float32(width) + eps)
    for each in range(width):
        out[each] = weight[each] * (row[each] * scale)


def body(arguments: Any) -> None:
    a = carray(arguments, (NUM_ARGUMENTS,))
    width = a[WIDTH]
    eps = np.float32(double_of_bits(a[EPS_BITS]))
    weight = carray(floats_at(a[WEIGHT]), (width,))
    begin, end = own_share(a[NUM_ROWS])
    for row in range(begin, end):
        for head in range(a[NUM_HEADS]):
            at = (row * a[ROW_STRIDE] + head * width) * FLOAT_BYTES
            rms_norm_row(
                carray(floats_at(a[ROWS] + at), (width,)), weight,
                carray(floats_at(a[OUT] + at), (width,)), width, eps,
            )  # fmt: skip
            if a[RESIDUAL] != 0:
                add(a[RESIDUAL] + at, a[OUT] + at, width)


run = compile_parallel(body, "7qdq")
