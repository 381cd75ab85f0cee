"""Soft cap: bounds numbers to cap * tanh(x / cap), as Gemma 2 does its logits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from engine.cpu.kernels.decode_attention import bound
from engine.cpu.thread_pool import (
    FLOAT_BYTES,
    compile_parallel,
    double_of_bits,
    floats_at,
    own_share,
)

ROWS, NUM_ROWS, WIDTH, SOFTCAP_BITS = range(4)  # SOFTCAP_BITS: of a float64
NUM_ARGUMENTS = 4


def body(arguments: Any) -> None:
    """Apply the soft cap to the calling thread's share of the rows."""
    a = carray(arguments, (NUM_ARGUMENTS,))
    width, softcap = a[WIDTH], np.float32(double_of_bits(a[SOFTCAP_BITS]))
    begin, end = own_share(a[NUM_ROWS])
    for row in range(begin, end):
        at = a[ROWS] + row * width * FLOAT_BYTES
        bound(carray(floats_at(at), (width,)), width, softcap)


run = compile_parallel(body, "3qd")
