"""Tile: a product of some rows with as many columns as registers hold, in LLVM's words.

What numba makes of such loops keeps its sums in memory, or adds up across a register for each
number: a third of the speed. Importing this fails where `compiled` does.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from worker.engine.compiled import FLOAT_BYTES

TILE_ROWS = 8
LANES = 16 if binding.get_host_cpu_features().get("avx512f") else 8  # floats in a register

INT, FLOAT = ir.IntType(64), ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
FIRST_LANE = ir.Constant(ir.IntType(32), 0)
IN_ALL_LANES = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
UNDEFINED, ZEROS = ir.Constant(VECTOR, ir.Undefined), ir.Constant(VECTOR, None)


def tile(num_rows: int, num_vectors: int) -> Any:
    """Of `num_rows` rows and `num_vectors` times LANES columns. The function that is returned is
    called with the address of the left rows and the floats from one to the next; the same of
    the right; how many products are added up for a number, at least one; and where the sums
    go, likewise.
    """

    @intrinsic
    def product(
        typing_context: Any, left: Any, left_stride: Any, right: Any, right_stride: Any,
        depth: Any, out: Any, out_stride: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            write_product(builder, num_rows, num_vectors, *args)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 7), generate

    return product


def write_product(
    builder: Any, num_rows: int, num_vectors: int, left: Any, left_stride: Any, right: Any,
    right_stride: Any, depth: Any, out: Any, out_stride: Any,
) -> None:  # fmt: skip
    def place(base: Any, row: Any, stride: Any, column: Any, kind: Any) -> Any:
        floats = builder.add(builder.mul(row, stride), column)
        offset = builder.mul(floats, ir.Constant(INT, FLOAT_BYTES))
        return builder.inttoptr(builder.add(base, offset), kind.as_pointer())

    before = builder.block
    loop, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)

    builder.position_at_end(loop)
    at = builder.phi(INT)
    before_it = [builder.phi(VECTOR) for _ in range(num_rows * num_vectors)]
    columns = [ir.Constant(INT, each * LANES) for each in range(num_vectors)]
    rights = [
        builder.load(place(right, at, right_stride, column, VECTOR), align=FLOAT_BYTES)
        for column in columns
    ]
    sums: list[Any] = []
    for row in range(num_rows):
        one = builder.load(place(left, ir.Constant(INT, row), left_stride, at, FLOAT))
        one = builder.insert_element(UNDEFINED, one, FIRST_LANE)
        spread = builder.shuffle_vector(one, UNDEFINED, IN_ALL_LANES)
        for each in rights:
            product = builder.fmul(spread, each, flags=("contract",))
            sums.append(builder.fadd(product, before_it[len(sums)], flags=("contract",)))
    following = builder.add(at, ir.Constant(INT, 1))
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
    for phi, first, later in zip(
        (at, *before_it),
        (ir.Constant(INT, 0), *[ZEROS] * len(sums)),
        (following, *sums),
        strict=True,
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(later, loop)

    builder.position_at_end(after)
    for number, total in enumerate(sums):
        row, vector = divmod(number, num_vectors)
        where = place(out, ir.Constant(INT, row), out_stride, columns[vector], VECTOR)
        builder.store(total, where, align=FLOAT_BYTES)
