"""Pick: rows by their numbers, compiled. Importing this fails where `compiled` does."""

from __future__ import annotations

from typing import Any

from numba import carray

from engine.cpu.kernels.decode_attention import copy
from engine.cpu.thread_pool import FLOAT_BYTES, in_pool, longs_at, own_share

SOURCE, INDEX, OUT, NUM_ROWS, WIDTH = range(5)  # the numbers of rows of SOURCE are at INDEX
NUM_ARGUMENTS = 5


def body(arguments: Any) -> None:
    """What each thread runs: its share of the rows."""
    a = carray(arguments, (NUM_ARGUMENTS,))
    numbers = carray(longs_at(a[INDEX]), (a[NUM_ROWS],))
    row_bytes = a[WIDTH] * FLOAT_BYTES
    begin, end = own_share(a[NUM_ROWS])
    for row in range(begin, end):
        copy(a[SOURCE] + numbers[row] * row_bytes, a[OUT] + row * row_bytes, a[WIDTH])


run = in_pool(body, "5q")
