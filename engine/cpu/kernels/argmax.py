"""Highest: the most likely token of each row, found by all threads at once, compiled.

torch looks through the rows of a step with one. Importing this fails where `compiled` does.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic
from torch import Tensor

from engine.cpu.kernels.llvm_ir import FLOAT, INT, LANES, load, loop, number, pointer, spread
from engine.cpu.thread_pool import (
    FLOAT_BYTES,
    fast,
    floats_at,
    in_pool,
    longs_at,
    own_share,
)

LOGITS, OUT, NUM_ROWS, WIDTH, STRIDE = range(5)
NUM_ARGUMENTS = 5
AT_ONCE = 4  # vectors; to compare takes as long as it takes to begin as many
BLOCK = 512  # numbers, of which only those with the argmax one are looked at twice


def can_argmax(logits: Tensor) -> bool:
    return (
        logits.dtype == torch.float32
        and logits.device.type == "cpu"
        and logits.stride(1) == 1
        and logits.shape[1] > 0
    )


def argmax(logits: Tensor) -> list[int]:
    """logits: (rows, vocab) that `can_argmax` lets pass; of equals the first, as torch's argmax."""
    num_rows, width = logits.shape
    found = np.empty(num_rows, np.int64)
    _run(
        min(torch.get_num_threads(), num_rows), logits.data_ptr(), found.ctypes.data, num_rows,
        width, logits.stride(0),
    )  # fmt: skip
    return found.tolist()


@intrinsic
def argmax_among(typing_context: Any, numbers: Any, length: Any) -> Any:
    """The argmax of floats at an address; what numba makes of it goes number by number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, length = args
        whole = builder.and_(length, number(-AT_ONCE * LANES))

        def higher(one: Any, other: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", one, other), one, other)

        def look(at_float: Any, vectors: list[Any]) -> list[Any]:
            return [
                higher(load(builder, at, builder.add(at_float, number(each * LANES))), vector)
                for each, vector in enumerate(vectors)
            ]

        def look_at_one(at_float: Any, argmax: list[Any]) -> list[Any]:
            return [higher(builder.load(pointer(builder, at, at_float, FLOAT)), argmax[0])]

        lowest = ir.Constant(FLOAT, -math.inf)
        begun = [spread(builder, lowest)] * AT_ONCE
        vectors = loop(builder, number(0), whole, AT_ONCE * LANES, look, begun)
        vector = reduce(higher, vectors)
        lanes = [builder.extract_element(vector, ir.Constant(INT, each)) for each in range(LANES)]
        return loop(builder, whole, length, 1, look_at_one, [reduce(higher, lanes)])[0]

    return types.float32(types.int64, types.int64), generate


@fast
def argmax_of_row(row: Any, width: Any) -> Any:
    """row: an address"""
    most, its_block = np.float32(-np.inf), 0
    for begin in range(0, width, BLOCK):
        most_here = argmax_among(row + begin * FLOAT_BYTES, min(BLOCK, width - begin))
        if most_here > most:
            most, its_block = most_here, begin
    numbers = carray(floats_at(row), (width,))
    for each in range(its_block, min(its_block + BLOCK, width)):
        if numbers[each] == most:
            return each
    return 0  # none is a number


def body(arguments: Any) -> None:
    a = carray(arguments, (NUM_ARGUMENTS,))
    out = carray(longs_at(a[OUT]), (a[NUM_ROWS],))
    begin, end = own_share(a[NUM_ROWS])
    for row in range(begin, end):
        out[row] = argmax_of_row(a[LOGITS] + row * a[STRIDE] * FLOAT_BYTES, a[WIDTH])


_run = in_pool(body, "5q")
