"""Rounds float32 rows to bytes, each by a scale of its own, for `quantized_linear.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from engine.cpu.captured_ops import captured_call
from engine.cpu.thread_pool import (
    FLOAT_BYTES,
    bytes_at,
    compile_parallel,
    fast,
    floats_at,
    own_share,
    threads_for,
)

ROWS, BYTES, SCALES, NUM_ROWS, WIDTH, NUM_STEPS, NUM_ARGUMENTS = range(7)
MIN_VALUES_A_THREAD = 16_384  # below it waking a thread costs more


@fast
def round_row(row: Any, rounded: Any, width: Any, num_steps: Any) -> Any:
    """Round a row to bytes, with zero stored as num_steps + 1; returns its scale."""
    most = np.float32(0)
    for each in range(width):
        most = max(most, abs(row[each]))
    scale = max(most, np.float32(1e-30)) / np.float32(num_steps)
    inverse = np.float32(1) / scale
    # Adding a half and cutting off the fraction rounds what is above 0.
    zero = np.float32(num_steps) + np.float32(1.5)
    for each in range(width):
        rounded[each] = np.uint8(np.int32(row[each] * inverse + zero))
    return scale


def body(arguments: Any) -> None:
    a = carray(arguments, (NUM_ARGUMENTS,))
    width = a[WIDTH]
    scales = carray(floats_at(a[SCALES]), (a[NUM_ROWS],))
    begin, end = own_share(a[NUM_ROWS])
    for row in range(begin, end):
        values = carray(floats_at(a[ROWS] + row * width * FLOAT_BYTES), (width,))
        rounded = carray(bytes_at(a[BYTES] + row * width), (width,))
        scales[row] = round_row(values, rounded, width, a[NUM_STEPS])


_run = compile_parallel(body, "6q")


def round_rows(rows: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """rows: (rows, width) float32; returns the same in uint8, and (rows, 1) float32 scales."""
    rows = rows.contiguous()
    num_rows, width = rows.shape
    rounded = torch.empty((num_rows, width), dtype=torch.uint8)
    scales = torch.empty((num_rows, 1))
    captured_call(_round_rows, rows, rounded, scales, num_steps)
    return rounded, scales


def _round_rows(rows: Tensor, rounded: Tensor, scales: Tensor, num_steps: int) -> None:
    num_rows, width = rows.shape
    _run(
        threads_for(num_rows * width, MIN_VALUES_A_THREAD), rows.data_ptr(), rounded.data_ptr(),
        scales.data_ptr(), num_rows, width, num_steps,
    )  # fmt: skip
