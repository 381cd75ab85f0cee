"""Highest: the most likely token of each row, found by all threads at once, compiled.

torch looks through the rows of a step with one. Importing this fails where `compiled` does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from worker.engine.compiled import (
    FLOAT_BYTES,
    fast,
    floats_at,
    in_pool,
    longs_at,
    own_share,
)

LOGITS, OUT, NUM_ROWS, WIDTH, STRIDE = range(5)
NUM_ARGUMENTS = 5


def can_find(logits: Tensor) -> bool:
    return (
        logits.dtype == torch.float32
        and logits.device.type == "cpu"
        and logits.stride(1) == 1
        and logits.shape[1] > 0
    )


def highest(logits: Tensor) -> list[int]:
    """logits: (rows, vocab) that `can_find` lets pass; of equals the first, as torch's argmax."""
    num_rows, width = logits.shape
    found = np.empty(num_rows, np.int64)
    _run(
        min(torch.get_num_threads(), num_rows), logits.data_ptr(), found.ctypes.data, num_rows,
        width, logits.stride(0),
    )  # fmt: skip
    return found.tolist()


@fast
def highest_of_row(row: Any, width: Any) -> Any:
    most = row[0]
    for each in range(width):
        most = max(most, row[each])
    for each in range(width):
        if row[each] == most:
            return each
    return 0  # there are NaN in it


def body(arguments: Any) -> None:
    a = carray(arguments, (NUM_ARGUMENTS,))
    out = carray(longs_at(a[OUT]), (a[NUM_ROWS],))
    begin, end = own_share(a[NUM_ROWS])
    for row in range(begin, end):
        logits = carray(floats_at(a[LOGITS] + row * a[STRIDE] * FLOAT_BYTES), (a[WIDTH],))
        out[row] = highest_of_row(logits, a[WIDTH])


_run = in_pool(body, "5q")
