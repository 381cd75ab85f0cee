"""Tile: a product of eight rows with as many columns as registers hold, in LLVM's words.

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


def tile(num_vectors: int) -> Any:
    """Of TILE_ROWS rows and `num_vectors` times LANES columns. The function that is returned is
    called with the address of the left rows and the floats from one to the next; the same of
    the right; how many products are added up for a number; and where the results go, likewise.
    """

    @intrinsic
    def product(
        typing_context: Any, left: Any, left_stride: Any, right: Any, right_stride: Any,
        depth: Any, out: Any, out_stride: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            write_product(builder, num_vectors, *args)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 7), generate

    return product


def write_product(
    builder: Any, num_vectors: int, left: Any, left_stride: Any, right: Any, right_stride: Any,
    depth: Any, out: Any, out_stride: Any,
) -> None:  # fmt: skip
    int64, vector = ir.IntType(64), ir.VectorType(ir.FloatType(), LANES)
    zero, vector_bytes = ir.Constant(int64, 0), LANES * FLOAT_BYTES

    def address(base: Any, index: Any, stride: Any, offset: int = 0) -> Any:
        floats = builder.mul(index, stride)
        at = builder.add(base, builder.mul(floats, ir.Constant(int64, FLOAT_BYTES)))
        return builder.add(at, ir.Constant(int64, offset))

    def number(value: int) -> Any:
        return ir.Constant(int64, value)

    before = builder.block
    loop, after = builder.append_basic_block("depth"), builder.append_basic_block("sums")
    rows = [address(left, number(row), left_stride) for row in range(TILE_ROWS)]
    builder.cbranch(builder.icmp_signed(">", depth, zero), loop, after)

    builder.position_at_end(loop)
    at = builder.phi(int64)
    at.add_incoming(zero, before)
    sums = []
    for _ in range(TILE_ROWS * num_vectors):
        sums.append(builder.phi(vector))
        sums[-1].add_incoming(ir.Constant(vector, None), before)
    columns = [
        builder.load(
            builder.inttoptr(
                address(right, at, right_stride, each * vector_bytes), vector.as_pointer()
            ),
            align=FLOAT_BYTES,
        )
        for each in range(num_vectors)
    ]
    added = []
    for row in range(TILE_ROWS):
        place = builder.inttoptr(
            builder.add(rows[row], builder.mul(at, number(FLOAT_BYTES))),
            ir.FloatType().as_pointer(),
        )
        one = builder.insert_element(
            ir.Constant(vector, ir.Undefined), builder.load(place), ir.Constant(ir.IntType(32), 0)
        )
        spread = builder.shuffle_vector(
            one, ir.Constant(vector, ir.Undefined),
            ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES),
        )  # fmt: skip
        for each in range(num_vectors):
            product = builder.fmul(spread, columns[each], flags=("contract",))
            total = sums[row * num_vectors + each]
            added.append(builder.fadd(product, total, flags=("contract",)))
    next_at = builder.add(at, number(1))
    at.add_incoming(next_at, loop)
    for total, sum_ in zip(sums, added, strict=True):
        total.add_incoming(sum_, loop)
    builder.cbranch(builder.icmp_signed("<", next_at, depth), loop, after)

    builder.position_at_end(after)
    for row in range(TILE_ROWS):
        for each in range(num_vectors):
            total = builder.phi(vector)
            total.add_incoming(ir.Constant(vector, None), before)
            total.add_incoming(added[row * num_vectors + each], loop)
            added[row * num_vectors + each] = total
    for row in range(TILE_ROWS):
        for each in range(num_vectors):
            place = address(out, number(row), out_stride, each * vector_bytes)
            builder.store(
                added[row * num_vectors + each],
                builder.inttoptr(place, vector.as_pointer()),
                align=FLOAT_BYTES,
            )
