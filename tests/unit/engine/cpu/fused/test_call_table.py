"""A table runs its compiled calls one after the other on all threads."""

from typing import Any

import numpy as np

from engine.cpu.fused.call_table import CallTable
from engine.cpu.kernels import gather_rows


def test_calls_follow_each_other_on_all_threads() -> None:
    rows = np.random.default_rng(0).normal(size=(501, 8)).astype(np.float32)
    reversed_ = np.arange(500, -1, -1)
    first, second = np.zeros_like(rows), np.zeros_like(rows)
    given = (reversed_.ctypes.data, len(rows), rows.shape[1])

    def call(source: np.ndarray, out: np.ndarray) -> Any:
        return gather_rows.run, (source.ctypes.data, given[0], out.ctypes.data, *given[1:], 1.0)

    table = CallTable([call(rows, first), call(first, second), call(rows, rows)])
    table.calls[2, 0] = 0  # left out
    for num_threads in (1, 2, 3):
        first[:], second[:] = 0, 0
        table.run(num_threads)
        assert (first == rows[::-1]).all()
        assert (second == rows).all()
    first[:], second[:] = 0, 0
    table.run(2, only=0)
    assert (first == rows[::-1]).all()
    assert not second.any()
