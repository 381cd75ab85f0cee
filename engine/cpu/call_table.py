"""Chain: calls of compiled functions one after the other, for which the pool is woken once.

Each ends on all threads before the next begins. Importing this fails where `compiled` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from engine.cpu.thread_pool import LONG_BYTES, InPool, in_pool, longs_at, wait_for_all

Call = tuple[InPool, tuple[float, ...]]  # and what it is told

CALLS, NUM_CALLS, CALL_BYTES = range(3)
NUM_ARGUMENTS = 3


class Chain:
    """A table of calls, which may be changed between two runs."""

    def __init__(self, calls: Sequence[Call]) -> None:
        packed = [np.frombuffer(function.pack(*told), np.int64) for function, told in calls]
        # (calls, 1 + what is told): the address of a function, 0 if there is no such call
        self.calls = np.zeros((len(calls), 1 + max(map(len, packed))), np.int64)
        for row, (function, _), told in zip(self.calls, calls, packed, strict=True):
            row[0], row[1 : 1 + len(told)] = function.address, told

    def run(self, num_threads: int, only: int | None = None) -> None:
        """only: the number of one call; None: all"""
        calls = self.calls if only is None else self.calls[only : only + 1]
        _run(num_threads, calls.ctypes.data, len(calls), calls.strides[0])


@intrinsic
def call(typing_context: Any, address: Any, told: Any) -> Any:
    """A function that `in_pool` compiled. told: the address of what it is told"""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = ir.IntType(64).as_pointer()
        function = ir.FunctionType(ir.VoidType(), [pointer]).as_pointer()
        builder.call(builder.inttoptr(args[0], function), [builder.inttoptr(args[1], pointer)])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


def body(arguments: Any) -> None:
    a = carray(arguments, (NUM_ARGUMENTS,))
    for each in range(a[NUM_CALLS]):
        at = a[CALLS] + each * a[CALL_BYTES]
        function = carray(longs_at(at), (1,))[0]
        if function != 0:
            call(function, at + LONG_BYTES)
            wait_for_all()


_run = in_pool(body, "3q")
