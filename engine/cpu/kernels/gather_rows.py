"""Copies rows of a table by their indices, optionally scaled, as for an embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from engine.cpu.thread_pool import (
    FLOAT_BYTES,
    compile_parallel,
    double_of_bits,
    fast,
    floats_at,
    longs_at,
    own_share,
)

SOURCE, INDEX, OUT, NUM_ROWS, WIDTH = range(5)  # INDEX: (rows,) int64, into SOURCE
SCALE_BITS = 5  # of a float64, by which the rows are multiplied
NUM_ARGUMENTS = 6


@fast
def copy_scaled(source: Any, target: Any, size: Any, scale: Any) -> None:
    """Copy `size` floats, multiplied by `scale`. source, target: addresses"""
    read, written = carray(floats_at(source), (size,)), carray(floats_at(target), (size,))
    for each in range(size):
        written[each] = scale * read[each]


def body(arguments: Any) -> None:
    """Copy the calling thread's share of the rows."""
    a = carray(arguments, (NUM_ARGUMENTS,))
    numbers = carray(longs_at(a[INDEX]), (a[NUM_ROWS],))
    row_bytes, scale = a[WIDTH] * FLOAT_BYTES, np.float32(double_of_bits(a[SCALE_BITS]))
    begin, end = own_share(a[NUM_ROWS])
    for row in range(begin, end):
        source = a[SOURCE] + numbers[row] * row_bytes
        copy_scaled(source, a[OUT] + row * row_bytes, a[WIDTH], scale)


run = compile_parallel(body, "5qd")
