"""Rotary: queries and keys turned by their positions, in one pass, compiled.

Su et al., 2021 (arXiv:2104.09864), as LLaMA pairs the numbers of a head: each of the first
half with that of the second. With torch it takes ten passes and makes five tensors. Importing
this fails where `compiled` does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from numba import carray
from torch import Tensor

from engine.cpu.captured_ops import captured_call
from engine.cpu.thread_pool import (
    FLOAT_BYTES,
    fast,
    floats_at,
    in_pool,
    own_share,
    threads_for,
)

NAME = "apply_rotary_pos_emb"  # of the function in the modules of `transformers`
IN, OUT, COS, SIN, NUM_TOKENS, NUM_HEADS, HEAD_SIZE, TOKEN_STRIDE, HEAD_STRIDE = range(9)
NUM_ARGUMENTS = 9
MIN_VALUES_A_THREAD = 16_384  # below it waking a thread costs more

Turn = Callable[..., tuple[Tensor, Tensor]]


def install(model: Any) -> bool:
    """Let the code of a model turn them so, if it turns them as LLaMA does; returns whether."""
    module = sys.modules[type(model).__module__]
    own: Turn | None = getattr(module, NAME, None)
    if own is None or isinstance(own, Rotary):
        return own is not None
    rotary = Rotary(own)
    if not rotary.does_the_same():
        return False
    setattr(module, NAME, rotary)
    return True


class Rotary:
    """In the place of the function of `transformers`, for all that it is called with."""

    def __init__(self, own: Turn) -> None:
        self.own = own

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """q, k: (rows, heads, tokens, head size); cos, sin: (rows, tokens, head size)"""
        if args or kwargs or not all(map(is_plain, (q, k, cos, sin))) or not fit(q, k, cos, sin):
            return self.own(q, k, cos, sin, *args, **kwargs)
        cos, sin = cos.contiguous(), sin.contiguous()
        return turned(q, cos, sin), turned(k, cos, sin)

    def does_the_same(self) -> bool:
        generator = torch.Generator().manual_seed(0)
        q, k, cos, sin = (
            torch.randn(size, generator=generator)
            for size in ((1, 4, 3, 16), (1, 1, 3, 16), (1, 3, 16), (1, 3, 16))
        )
        with torch.inference_mode():
            try:
                expected = self.own(q, k, cos, sin)
            except Exception:  # it wants something else
                return False
            found = self(q, k, cos, sin)
            return all(map(torch.allclose, found, expected))


def is_plain(tensor: Tensor) -> bool:
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.stride(-1) == 1
        and not tensor.requires_grad
    )


def fit(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    rows, _, tokens, head_size = q.shape
    return (
        cos.shape == sin.shape == (rows, tokens, head_size)
        and (k.shape[0], k.shape[2], k.shape[3]) == (rows, tokens, head_size)
        and head_size % 2 == 0
        # The tokens of all rows can be counted through.
        and all(each.shape[0] == 1 or each.shape[2] == 1 for each in (q, k))
    )


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: (rows, heads, tokens, head size), of one row or of one token each; returns the same,
    with the heads of a token one after the other"""
    rows, heads, tokens, head_size = x.shape
    out = torch.empty((rows, tokens, heads, head_size))
    captured_call(turn, x, cos, sin, out)
    return out.transpose(1, 2)


def turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    rows, heads, tokens, head_size = x.shape
    token_stride = x.stride(2) if rows == 1 else x.stride(0)
    _run(
        threads_for(x.numel(), MIN_VALUES_A_THREAD), x.data_ptr(), out.data_ptr(), cos.data_ptr(),
        sin.data_ptr(), rows * tokens, heads, head_size, token_stride, x.stride(1),
    )  # fmt: skip


@fast
def turn_head(x: Any, cos: Any, sin: Any, out: Any, half: Any) -> None:
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
            turn_head(
                carray(floats_at(a[IN] + at), (size,)), cos, sin,
                carray(floats_at(a[OUT] + to), (size,)), size // 2,
            )  # fmt: skip


_run = in_pool(body, "9q")
