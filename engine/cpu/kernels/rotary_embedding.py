"""Rotary embedding: queries and keys are rotated by their positions, in one pass.

Su et al., 2021 (arXiv:2104.09864), as LLaMA pairs the numbers of a head: each of the first half
with one of the second. torch takes ten passes and makes five tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from numba import carray
from torch import Tensor

from engine.cpu.captured_ops import captured_call
from engine.cpu.self_test import agrees
from engine.cpu.thread_pool import (
    FLOAT_BYTES,
    compile_parallel,
    fast,
    floats_at,
    own_share,
    threads_for,
)

NAME = "apply_rotary_pos_emb"  # of the function in the modules of `transformers`
IN, OUT, COS, SIN, NUM_TOKENS, NUM_HEADS, HEAD_SIZE, TOKEN_STRIDE, HEAD_STRIDE = range(9)
NUM_ARGUMENTS = 9
MIN_VALUES_A_THREAD = 16_384  # below it waking a thread costs more

Rotate = Callable[..., tuple[Tensor, Tensor]]


def install(model: Any) -> bool:
    """Replace the function of the model's own code, if it rotates as LLaMA does.

    Returns whether it is replaced. It serves every model of that code in this process.
    """
    module = sys.modules[type(model).__module__]
    own: Rotate | None = getattr(module, NAME, None)
    if own is None or isinstance(own, RotaryEmbedding):
        return own is not None
    rotary = RotaryEmbedding(own)
    if not rotary.agrees():
        return False
    setattr(module, NAME, rotary)
    return True


class RotaryEmbedding:
    """Takes the place of the function of `transformers`, which serves calls that do not fit."""

    def __init__(self, own: Rotate) -> None:
        self.own = own

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """q, k: (rows, heads, tokens, head size); cos, sin: (rows, tokens, head size)"""
        if args or kwargs or not all(map(is_plain, (q, k, cos, sin))) or not fit(q, k, cos, sin):
            return self.own(q, k, cos, sin, *args, **kwargs)
        cos, sin = cos.contiguous(), sin.contiguous()
        return rotated(q, cos, sin), rotated(k, cos, sin)

    def agrees(self) -> bool:
        """Return whether it gives what the function gives that it replaces."""
        draw = torch.Generator().manual_seed(0)
        inputs = [
            torch.randn(size, generator=draw)
            for size in ((1, 4, 3, 16), (1, 1, 3, 16), (1, 3, 16), (1, 3, 16))
        ]
        return agrees("rotary embedding", lambda: self(*inputs), lambda: self.own(*inputs), 1e-5)


def is_plain(tensor: Tensor) -> bool:
    """Return whether the kernel can read the tensor."""
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.stride(-1) == 1
        and not tensor.requires_grad
    )


def fit(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Return whether the shapes are those that the kernel takes."""
    rows, _, tokens, head_size = q.shape
    return (
        cos.shape == sin.shape == (rows, tokens, head_size)
        and (k.shape[0], k.shape[2], k.shape[3]) == (rows, tokens, head_size)
        and head_size % 2 == 0
        # The tokens of all rows lie at one stride.
        and all(each.shape[0] == 1 or each.shape[2] == 1 for each in (q, k))
    )


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: (rows, heads, tokens, head size), of one row, or of one token each; returns the same
    shape, where the heads of a token lie one after the other"""
    rows, heads, tokens, head_size = x.shape
    out = torch.empty((rows, tokens, heads, head_size))
    captured_call(rotate_rows, x, cos, sin, out)
    return out.transpose(1, 2)


def rotate_rows(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Write the rotated heads into `out`: (rows, tokens, heads, head size)."""
    rows, heads, tokens, head_size = x.shape
    token_stride = x.stride(2) if rows == 1 else x.stride(0)
    _run(
        threads_for(x.numel(), MIN_VALUES_A_THREAD), x.data_ptr(), out.data_ptr(), cos.data_ptr(),
        sin.data_ptr(), rows * tokens, heads, head_size, token_stride, x.stride(1),
    )  # fmt: skip


@fast
def rotate_head(x: Any, cos: Any, sin: Any, out: Any, half: Any) -> None:
    """Rotate a head of 2 * `half` numbers. x, cos, sin, out: arrays of that size"""
    for each in range(half):
        first, second = x[each], x[half + each]
        out[each] = first * cos[each] - second * sin[each]
        out[half + each] = second * cos[half + each] + first * sin[half + each]


def body(arguments: Any) -> None:
    a = carray(arguments, (NUM_ARGUMENTS,))
    heads, size = a[NUM_HEADS], a[HEAD_SIZE]
    begin, end = own_share(a[NUM_TOKENS])
    for token in range(begin, end):
        cos = carray(floats_at(a[COS] + token * size * FLOAT_BYTES), (size,))
        sin = carray(floats_at(a[SIN] + token * size * FLOAT_BYTES), (size,))
        for head in range(heads):
            at = (token * a[TOKEN_STRIDE] + head * a[HEAD_STRIDE]) * FLOAT_BYTES
            to = (token * heads + head) * size * FLOAT_BYTES
            rotate_head(
                carray(floats_at(a[IN] + at), (size,)), cos, sin,
                carray(floats_at(a[OUT] + to), (size,)), size // 2,
            )  # fmt: skip


_run = compile_parallel(body, "9q")
