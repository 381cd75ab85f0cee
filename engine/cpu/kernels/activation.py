"""SiluAndMulMLP: LLaMA's feed-forward part, whose activation takes one pass.

down(silu(gate(x)) * up(x)), with silu(x) = x / (1 + exp(-x)); Shazeer, 2020 (arXiv:2002.05202).
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numba import carray
from torch import Tensor, nn

from engine.cpu.captured_ops import captured_call
from engine.cpu.kernels.softmax import exp
from engine.cpu.thread_pool import (
    FLOAT_BYTES,
    as_rows,
    compile_parallel,
    fast,
    floats_at,
    own_share,
    threads_for,
)

GATE, UP, OUT, NUM_ROWS, WIDTH, GATE_STRIDE, UP_STRIDE = range(7)
NUM_ARGUMENTS = 7
MIN_VALUES_A_THREAD = 8192  # below it waking a thread costs more


class SiluAndMulMLP(nn.Module):
    """Takes the place of LlamaMLP and its relatives, with their own linear layers."""

    def __init__(self, gate_proj: nn.Module, up_proj: nn.Module, down_proj: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj

    @classmethod
    def like(cls, module: Any) -> Self:
        """Return one with the linear layers of a module of `transformers`."""
        return cls(module.gate_proj, module.up_proj, module.down_proj)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width) float32; returns the same shape"""
        return self.down_proj(silu_and_mul(self.gate_proj(x), self.up_proj(x)))  # type: ignore[no-any-return]  # a module


class MergedSiluAndMulMLP(nn.Module):
    """The same where gate and up are one layer, as in Phi-3."""

    def __init__(self, gate_up_proj: nn.Module, down_proj: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = gate_up_proj, down_proj

    @classmethod
    def like(cls, module: Any) -> Self:
        return cls(module.gate_up_proj, module.down_proj)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(silu_and_mul(gate, up))  # type: ignore[no-any-return]  # a module


def silu_and_mul(gate: Tensor, up: Tensor) -> Tensor:
    """gate, up: (..., inner) float32; returns silu(gate) * up, of the same shape."""
    assert gate.dtype == up.dtype == torch.float32
    if gate.shape != up.shape:
        raise ValueError(f"gate is {tuple(gate.shape)}, up is {tuple(up.shape)}")
    width = gate.shape[-1]
    gates, ups = as_rows(gate), as_rows(up)
    out = torch.empty((len(gates), width))
    captured_call(silu_and_mul_rows, gates, ups, out)
    return out.view(gate.shape)


def silu_and_mul_rows(gates: Tensor, ups: Tensor, out: Tensor) -> None:
    """Write silu(gate) * up into `out`; all are (rows, inner) float32."""
    num_rows, width = out.shape
    run(
        threads_for(num_rows * width, MIN_VALUES_A_THREAD), gates.data_ptr(), ups.data_ptr(),
        out.data_ptr(), num_rows, width, gates.stride(0), ups.stride(0),
    )  # fmt: skip


@fast
def silu_and_mul_row(gate: Any, up: Any, out: Any, width: Any) -> None:
    for each in range(width):
        x = gate[each]
        small = exp(-abs(x))
        above = np.float32(1) if x >= 0 else small
        out[each] = x * above / (np.float32(1) + small) * up[each]


def body(arguments: Any) -> None:
    a = carray(arguments, (NUM_ARGUMENTS,))
    width = a[WIDTH]
    begin, end = own_share(a[NUM_ROWS])
    for row in range(begin, end):
        silu_and_mul_row(
            carray(floats_at(a[GATE] + row * a[GATE_STRIDE] * FLOAT_BYTES), (width,)),
            carray(floats_at(a[UP] + row * a[UP_STRIDE] * FLOAT_BYTES), (width,)),
            carray(floats_at(a[OUT] + row * width * FLOAT_BYTES), (width,)),
            width,
        )


run = compile_parallel(body, "7q")
