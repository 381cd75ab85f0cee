"""RMSNorm: what LLaMA and T5 divide a row by, in one pass over it, compiled.

x / sqrt(mean(x^2) + eps) * weight; Zhang and Sennrich, 2019 (arXiv:1910.07467). With torch
it takes six passes, each of which wakes the threads. Importing this fails where `compiled` does.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numba import carray
from torch import Tensor, nn

from engine.cpu.captured_ops import captured_call
from engine.cpu.thread_pool import (
    FLOAT_BYTES,
    double_of_bits,
    fast,
    floats_at,
    in_pool,
    own_share,
    threads_for,
)

ROWS, WEIGHT, OUT, NUM_ROWS, WIDTH, EPS_BITS = range(6)
NUM_ARGUMENTS = 6
MIN_VALUES_A_THREAD = 16_384  # below it waking a thread costs more


class RMSNorm(nn.Module):
    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        """weight: (width,) float32"""
        super().__init__()
        self.weight = weight
        self.variance_epsilon = eps

    @classmethod
    def like(cls, module: Any) -> Self:
        """In place of one of `transformers`."""
        return cls(module.weight, module.variance_epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width) float32"""
        return normalized(x, self.weight, self.variance_epsilon)


def normalized(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: (..., width) float32; weight: (width,)"""
    assert x.dtype == torch.float32
    if x.shape[-1:] != weight.shape:
        raise ValueError(f"rows of {x.shape[-1]} for weights of {len(weight)}")
    x = x.contiguous()
    out = torch.empty_like(x)
    captured_call(normalize, x, weight, eps, out)
    return out


def normalize(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    width, num_values = x.shape[-1], x.numel()
    run(
        threads_for(num_values, MIN_VALUES_A_THREAD), x.data_ptr(), weight.data_ptr(),
        out.data_ptr(), num_values // width, width, eps,
    )  # fmt: skip


@fast
def normalize_row(row: Any, weight: Any, out: Any, width: Any, eps: Any) -> None:
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
        at = row * width * FLOAT_BYTES
        normalize_row(
            carray(floats_at(a[ROWS] + at), (width,)), weight,
            carray(floats_at(a[OUT] + at), (width,)), width, eps,
        )  # fmt: skip


run = in_pool(body, "5qd")
