"""The softmax of a row of scores, and the exponential function for it."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from engine.cpu.kernels.llvm_ir import FLOAT, INT, LANES, load, loop, number, pointer, spread
from engine.cpu.thread_pool import fast, float_of_bits, floats_at

NUM_VECTORS = 4  # compared at once: a comparison takes as long as starting as many


@fast
def exp(x: Any) -> Any:
    """Return e to the power of `x`, for x <= 0, within 2 ulp.

    LLVM can vectorize it, unlike the library's. It is Cephes' expf: 2 to the n, times a polynomial
    of the remainder.
    """
    x = max(x, np.float32(-87.0))
    n = np.int32(x * np.float32(1.44269504) - np.float32(0.5))
    r = x - np.float32(n) * np.float32(0.693359375)
    r = r + np.float32(n) * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * float_of_bits(np.int32((n + np.int32(127)) << np.int32(23)))


@intrinsic
def maximum(typing_context: Any, numbers: Any, length: Any) -> Any:
    """Return the largest of `length` floats at the address `numbers`.

    numba would compare them one by one.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, length = args
        whole = builder.and_(length, number(-NUM_VECTORS * LANES))

        def larger(one: Any, other: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", one, other), one, other)

        def compare_vectors(index: Any, vectors: list[Any]) -> list[Any]:
            return [
                larger(load(builder, at, builder.add(index, number(each * LANES))), vector)
                for each, vector in enumerate(vectors)
            ]

        def compare_one(index: Any, largest: list[Any]) -> list[Any]:
            return [larger(builder.load(pointer(builder, at, index, FLOAT)), largest[0])]

        begun = [spread(builder, ir.Constant(FLOAT, -math.inf))] * NUM_VECTORS
        vectors = loop(builder, number(0), whole, NUM_VECTORS * LANES, compare_vectors, begun)
        vector = reduce(larger, vectors)
        lanes = [builder.extract_element(vector, ir.Constant(INT, each)) for each in range(LANES)]
        return loop(builder, whole, length, 1, compare_one, [reduce(larger, lanes)])[0]

    return types.float32(types.int64, types.int64), generate


@fast
def softmax(address: Any, length: Any) -> None:
    """Replace `length` float32 scores at an address by their softmax."""
    scores, largest = carray(floats_at(address), (length,)), maximum(address, length)
    total = np.float32(0)
    for column in range(length):
        scores[column] = exp(scores[column] - largest)
        total += scores[column]
    share = np.float32(1) / total
    for column in range(length):
        scores[column] *= share
