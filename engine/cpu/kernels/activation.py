"""GatedMLP: the feed-forward part of LLaMA and Gemma, with the activation in one pass.

down(act(gate(x)) * up(x)), with silu(x) = x / (1 + exp(-x)), or GELU by its tanh; Shazeer, 2020
(arXiv:2002.05202).
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

# An activation without a gate does not read UP.
GATE, UP, OUT, NUM_ROWS, WIDTH, GATE_STRIDE, UP_STRIDE, KIND = range(8)
NUM_ARGUMENTS = 8
SILU, GELU, RELU = range(3)  # kinds of activation
GATED, PLAIN = (SILU, GELU), (RELU,)
# By the class of a gate's activation in `transformers`; a self-test checks its values.
KINDS = {"SiLU": SILU, "SiLUActivation": SILU, "GELUTanh": GELU, "NewGELUActivation": GELU}
MIN_VALUES_A_THREAD = 8192  # below it waking a thread costs more


class GatedMLP(nn.Module):
    """Replaces LlamaMLP and its relatives, with their own linear layers."""

    def __init__(
        self, gate_proj: nn.Module, up_proj: nn.Module, down_proj: nn.Module, kind: int
    ) -> None:
        """kind: SILU or GELU"""
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj
        self.activation = kind

    @classmethod
    def like(cls, module: Any) -> Self:
        """Return a GatedMLP with the linear layers of a `transformers` module."""
        kind = KINDS[type(module.act_fn).__name__]
        return cls(module.gate_proj, module.up_proj, module.down_proj, kind)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width) float32; returns the same shape"""
        return self.down_proj(gated(self.gate_proj(x), self.up_proj(x), self.activation))  # type: ignore[no-any-return]  # a module


class MergedGatedMLP(nn.Module):
    """A GatedMLP whose gate and up are one layer, as in Phi-3."""

    def __init__(self, gate_up_proj: nn.Module, down_proj: nn.Module, kind: int) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = gate_up_proj, down_proj
        self.activation = kind

    @classmethod
    def like(cls, module: Any) -> Self:
        kind = KINDS[type(module.activation_fn).__name__]
        return cls(module.gate_up_proj, module.down_proj, kind)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(gated(gate, up, self.activation))  # type: ignore[no-any-return]  # a module


def gated(gate: Tensor, up: Tensor, kind: int) -> Tensor:
    """gate, up: (..., inner) float32; returns act(gate) * up, of the same shape."""
    assert gate.dtype == up.dtype == torch.float32
    if gate.shape != up.shape:
        raise ValueError(f"gate is {tuple(gate.shape)}, up is {tuple(up.shape)}")
    width = gate.shape[-1]
    gates, ups = as_rows(gate), as_rows(up)
    out = torch.empty((len(gates), width))
    captured_call(gated_rows, gates, ups, out, kind)
    return out.view(gate.shape)


def gated_rows(gates: Tensor, ups: Tensor, out: Tensor, kind: int) -> None:
    """Write act(gate) * up into `out`; all are (rows, inner) float32."""
    num_rows, width = out.shape
    run(
        threads_for(num_rows * width, MIN_VALUES_A_THREAD), gates.data_ptr(), ups.data_ptr(),
        out.data_ptr(), num_rows, width, gates.stride(0), ups.stride(0), kind,
    )  # fmt: skip


@fast
def over_one_plus_exp(x: Any, exponent: Any) -> Any:
    """Return x / (1 + exp(-exponent)), computed without overflow."""
    small = exp(-abs(exponent))
    above = np.float32(1) if exponent >= 0 else small
    return x * above / (np.float32(1) + small)


@fast
def silu_and_mul(gate: Any, up: Any, out: Any, width: Any) -> None:
    for each in range(width):
        out[each] = over_one_plus_exp(gate[each], gate[each]) * up[each]


@fast
def gelu_and_mul(gate: Any, up: Any, out: Any, width: Any) -> None:
    """Compute GELU(gate) * up by the tanh approximation.

    0.5 x (1 + tanh(y)) is x / (1 + exp(-2 y)).
    """
    for each in range(width):
        x = gate[each]
        y = np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)
        out[each] = over_one_plus_exp(x, np.float32(2) * y) * up[each]


@fast
def relu(gate: Any, out: Any, width: Any) -> None:
    """Compute max(gate, 0)."""
    for each in range(width):
        out[each] = max(gate[each], np.float32(0))


def body(arguments: Any) -> None:
    """Compute the calling thread's share of the rows."""
    a = carray(arguments, (NUM_ARGUMENTS,))
    width = a[WIDTH]
    begin, end = own_share(a[NUM_ROWS])
    for row in range(begin, end):
        gate = carray(floats_at(a[GATE] + row * a[GATE_STRIDE] * FLOAT_BYTES), (width,))
        up = carray(floats_at(a[UP] + row * a[UP_STRIDE] * FLOAT_BYTES), (width,))
        out = carray(floats_at(a[OUT] + row * width * FLOAT_BYTES), (width,))
        if a[KIND] == RELU:
            relu(gate, out, width)
        elif a[KIND] == GELU:
            gelu_and_mul(gate, up, out, width)
        else:
            silu_and_mul(gate, up, out, width)


run = compile_parallel(body, "8q")
