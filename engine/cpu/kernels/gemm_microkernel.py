"""The gemm microkernel: a few rows times as many columns as fit into registers, in LLVM IR.

numba would keep the sums in memory, or sum across a register for each number, at a third of the
speed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from numba import types
from numba.extending import intrinsic

from engine.cpu.kernels.llvm_ir import (
    BYTE,
    FLOAT,
    LANES,
    ZEROS,
    by_case,
    load,
    loop,
    number,
    plus_product,
    pointer,
    prefetch,
    spread,
    store,
)

# As many as leave registers for the right rows, of 32 with AVX-512 and of 16 without: a sum that
# does not stay in one halves the speed.
TILE_ROWS = 8 if LANES == 16 else 6


def microkernel(num_vectors: int) -> Any:
    """Return a function that multiplies by `num_vectors` times LANES columns.

    It takes the number of rows, at most TILE_ROWS; the address of the left rows and their stride in
    floats; the same of the right rows; the depth, which is the number of products in a sum; and the
    address and the stride of the sums.
    """

    @intrinsic
    def product(
        typing_context: Any, num_rows: Any, left: Any, left_stride: Any, right: Any,
        right_stride: Any, depth: Any, out: Any, out_stride: Any,
    ) -> Any:  # fmt: skip
        return types.none(*[types.int64] * 8), partial(write_cases, num_vectors)

    return product


def prefetching_microkernel(num_vectors: int) -> Any:
    """Return a microkernel that also prefetches into the second-level cache.

    It also takes the address of the first float to prefetch, and how many floats to advance after
    each right row, at most the length of that row. Prefetching cached floats costs next to nothing.
    """

    @intrinsic
    def product(
        typing_context: Any, num_rows: Any, left: Any, left_stride: Any, right: Any,
        right_stride: Any, depth: Any, out: Any, out_stride: Any, following: Any, pace: Any,
    ) -> Any:  # fmt: skip
        return types.none(*[types.int64] * 10), partial(write_cases, num_vectors)

    return product


def write_cases(num_vectors: int, context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Emit a product for each number of rows, the first of `args`."""
    cases = {
        rows: partial(write_product, builder, rows, num_vectors, *args[1:])
        for rows in range(1, TILE_ROWS + 1)
    }
    by_case(builder, args[0], cases)
    return context.get_dummy_value()


def write_product(
    builder: Any, num_rows: int, num_vectors: int, left: Any, left_stride: Any, right: Any,
    right_stride: Any, depth: Any, out: Any, out_stride: Any, following: Any = None,
    pace: Any = None,
) -> None:  # fmt: skip
    def place(row: Any, stride: Any, column: Any) -> Any:
        return builder.add(builder.mul(row, stride), column)

    columns = [number(each * LANES) for each in range(num_vectors)]

    def add_products(at: Any, sums: list[Any]) -> list[Any]:
        if following is not None:
            for each in columns:
                prefetch(builder, pointer(builder, following, place(at, pace, each), BYTE))
        rights = [load(builder, right, place(at, right_stride, each)) for each in columns]
        totals: list[Any] = []
        for row in range(num_rows):
            one = builder.load(pointer(builder, left, place(number(row), left_stride, at), FLOAT))
            in_all = spread(builder, one)
            for each in rights:
                totals.append(plus_product(builder, sums[len(totals)], in_all, each))
        return totals

    begun = [ZEROS] * (num_rows * num_vectors)
    for index, total in enumerate(loop(builder, number(0), depth, 1, add_products, begun)):
        row, vector = divmod(index, num_vectors)
        store(builder, total, out, place(number(row), out_stride, columns[vector]))
