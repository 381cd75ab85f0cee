"""CallTable: compiled functions that run one after the other, for one wake-up of the thread pool.

All threads finish a call before the next begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from engine.cpu.thread_pool import (
    LONG_BYTES,
    ParallelFunction,
    compile_parallel,
    longs_at,
    wait_for_all,
)

Call = tuple[ParallelFunction, tuple[float, ...]]  # a function and its arguments

CALLS, NUM_CALLS, CALL_BYTES = range(3)
NUM_ARGUMENTS = 3


class CallTable:
    """Calls with their arguments, which may be changed between two runs."""

    def __init__(self, calls: Sequence[Call]) -> None:
        packed = [np.frombuffer(run.pack(*arguments), np.int64) for run, arguments in calls]
        # (calls, 1 + arguments) int64: a function's address, or 0 to leave the call out, and
        # then its arguments.
        self.calls = np.zeros((len(calls), 1 + max(map(len, packed))), np.int64)
        for row, (run, _), arguments in zip(self.calls, calls, packed, strict=True):
            row[0], row[1 : 1 + len(arguments)] = run.address, arguments

    def run(self, num_threads: int, only: int | None = None) -> None:
        """Run all calls, or only the call at index `only`."""
        calls = self.calls if only is None else self.calls[only : only + 1]
        _run(num_threads, calls.ctypes.data, len(calls), calls.strides[0])


@intrinsic
def call(typing_context: Any, function: Any, arguments: Any) -> Any:
    """Call a function that `compile_parallel` made. function, arguments: their addresses"""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = ir.IntType(64).as_pointer()
        function = ir.FunctionType(ir.VoidType(), [pointer]).as_pointer()
        builder.call(builder.inttoptr(args[0], function), [builder.inttoptr(args[1], pointer)])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


def body(arguments: Any) -> None:
    a = carray(arguments, (NUM_ARGUMENTS,))
    for each in range(a[NUM_CALLS]):
        address = a[CALLS] + each * a[CALL_BYTES]
        function = carray(longs_at(address), (1,))[0]
        if function != 0:
            call(function, address + LONG_BYTES)
            wait_for_all()


_run = compile_parallel(body, "3q")
