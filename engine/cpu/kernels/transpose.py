"""Transposes rows into panels, the layout of the right side of a product, in LLVM IR.

numba would copy number by number, which is half of the time when a few queries attend to a long
text.
"""

from __future__ import annotations

from typing import Any

from numba import carray, types
from numba.extending import intrinsic

from engine.cpu.kernels.llvm_ir import LANES, load, number, shuffled, store
from engine.cpu.thread_pool import FLOAT_BYTES, fast, floats_at

PANEL_WIDTH = 2 * LANES  # columns, one after the other at each depth


@intrinsic
def transpose_square(
    typing_context: Any, rows: Any, row_stride: Any, columns: Any, column_stride: Any
) -> Any:
    """Transpose LANES rows of as many floats, in registers.

    rows, columns: the addresses of both; their strides in floats
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, row_stride, columns, column_stride = args

        def of_row(index: int, stride: Any) -> Any:
            return builder.mul(number(index), stride)

        vectors = [load(builder, rows, of_row(each, row_stride)) for each in range(LANES)]
        half = LANES // 2
        while half:
            # Two rows swap the lanes in which they differ from the transposed by `half`.
            lower = [at if not at & half else LANES + at - half for at in range(LANES)]
            upper = [at + half if not at & half else LANES + at for at in range(LANES)]
            for at in (each for each in range(LANES) if not each & half):
                pair = vectors[at], vectors[at + half]
                vectors[at] = shuffled(builder, *pair, lower)
                vectors[at + half] = shuffled(builder, *pair, upper)
            half //= 2
        for each, vector in enumerate(vectors):
            store(builder, vector, columns, of_row(each, column_stride))
        return context.get_dummy_value()

    return types.none(*[types.int64] * 4), generate


@fast
def transpose(rows: Any, num_rows: Any, size: Any, panels: Any) -> None:
    """Transpose rows into panels.

    rows:   the address of (num_rows, size), with a size that is a multiple of LANES
    panels: the address of (panels, size, PANEL_WIDTH); the last panel may be partly filled
    """
    num_whole = num_rows // LANES * LANES
    for row in range(0, num_whole, LANES):
        panel = panels + (row // PANEL_WIDTH * size * PANEL_WIDTH + row % PANEL_WIDTH) * FLOAT_BYTES
        for each in range(0, size, LANES):
            transpose_square(
                rows + (row * size + each) * FLOAT_BYTES, size,
                panel + each * PANEL_WIDTH * FLOAT_BYTES, PANEL_WIDTH,
            )  # fmt: skip
    read = carray(floats_at(rows), (num_rows * size,))
    panel = num_whole // PANEL_WIDTH * size * PANEL_WIDTH
    written = carray(floats_at(panels + panel * FLOAT_BYTES), (size * PANEL_WIDTH,))
    for row in range(num_whole, num_rows):
        for each in range(size):
            written[each * PANEL_WIDTH + row % PANEL_WIDTH] = read[row * size + each]
