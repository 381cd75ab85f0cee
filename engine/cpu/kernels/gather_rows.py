"""Rows of a table are copied by their indices, as for an embedding."""

from __future__ import annotations

from typing import Any

from numba import carray

from engine.cpu.kernels.decode_attention import copy
from engine.cpu.thread_pool import FLOAT_BYTES, compile_parallel, longs_at, own_share

SOURCE, INDEX, OUT, NUM_ROWS, WIDTH = range(5)  # INDEX: (rows,) int64, into SOURCE
NUM_ARGUMENTS = 5


def body(arguments: Any) -> None:
    """Copy the calling thread's share of the rows."""
    a = carray(arguments, (NUM_ARGUMENTS,))
    numbers = carray(longs_at(a[INDEX]), (a[NUM_ROWS],))
    row_bytes = a[WIDTH] * FLOAT_BYTES
    begin, end = own_share(a[NUM_ROWS])
    for row in range(begin, end):
        copy(a[SOURCE] + numbers[row] * row_bytes, a[OUT] + row * row_bytes, a[WIDTH])


run = compile_parallel(body, "5q")
