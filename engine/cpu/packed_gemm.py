"""PackedGemmLinear: a float32 linear layer whose product is compiled here.

The weights for as many outputs as fit into two registers are stored as a panel, input by input, so
that they are read once and in order. A tile of TILE_ROWS rows is multiplied with a panel in
registers (Goto and van de Geijn, 2008, doi:10.1145/1356052.1356053). The order of each sum does not
depend on the other rows: a row's product has the same bits alone and in a batch.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numba import carray
from torch import Tensor, nn

from engine.cpu.captured_ops import captured_call
from engine.cpu.kernels.decode_attention import add, copy
from engine.cpu.kernels.gemm_microkernel import TILE_ROWS, prefetching_microkernel
from engine.cpu.kernels.llvm_ir import LANES
from engine.cpu.linear import refuse_width
from engine.cpu.thread_pool import (
    FLOAT_BYTES,
    as_rows,
    compile_parallel,
    fast,
    own_share,
    thread_number,
    threads_for,
)

PANEL_WIDTH = 2 * LANES
MIN_PRODUCTS_A_THREAD = 2**18  # below it waking a thread costs more

(
    ROWS, ROW_STRIDE, NUM_ROWS, DEPTH,
    WEIGHTS, WIDTH, BIAS,
    RESIDUAL,  # added to the product; 0: nothing
    OUT, SCRATCH,
    NUM_ARGUMENTS,
) = range(11)  # fmt: skip

multiply = prefetching_microkernel(2)


class PackedGemmLinear(nn.Module):
    """A linear layer with its weights in panels."""

    MIN_WEIGHTS: ClassVar[int] = 1024

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: (out, in) float32"""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        # Some models look at the type of their weights. The numbers are in `packed_weight` only.
        self.weight = weight.new_empty(0)
        self.packed_weight = pack_weight(weight)
        self.scratch = new_scratch(0)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) float32; returns (..., out)"""
        refuse_width(x, self.in_features)
        if x.dtype != torch.float32:
            raise TypeError(f"rows in {x.dtype} for a product in float32")
        out = torch.empty((*x.shape[:-1], self.out_features))
        captured_call(self._multiply, as_rows(x), out)
        return out

    def _multiply(self, rows: Tensor, out: Tensor) -> None:
        """Multiply rows. rows: (rows, in), possibly a part of wider rows; out: (..., out)"""
        num_rows, depth = rows.shape
        num_threads = threads_for(num_rows * depth * self.out_features, MIN_PRODUCTS_A_THREAD)
        if len(self.scratch) < num_threads:
            self.scratch = new_scratch(num_threads)
        scratch = self.scratch.ctypes.data
        run(
            num_threads,
            *self.arguments(rows.data_ptr(), rows.stride(0), num_rows, 0, out.data_ptr(), scratch),
        )

    def arguments(
        self, rows: int, row_stride: int, num_rows: int, residual: int, out: int, scratch: int
    ) -> tuple[int, ...]:
        """Return the arguments of `run`. rows, residual, out, scratch: addresses; residual may
        be 0"""
        return (
            rows, row_stride, num_rows, self.in_features, self.packed_weight.data_ptr(),
            self.out_features, 0 if self.bias is None else self.bias.data_ptr(), residual, out,
            scratch,
        )  # fmt: skip


def new_scratch(num_threads: int) -> np.ndarray:
    """Return (threads, TILE_ROWS, PANEL_WIDTH): for tiles of a panel wider than the outputs."""
    return np.empty((num_threads, TILE_ROWS, PANEL_WIDTH), np.float32)


def pack_weight(weight: Tensor) -> Tensor:
    """Pack a weight, (out, in). Returns (panels, in, PANEL_WIDTH), zero-padded."""
    num_outputs, depth = weight.shape
    num_whole, num_left = divmod(num_outputs, PANEL_WIDTH)
    panels = torch.empty((num_whole + (num_left > 0), depth, PANEL_WIDTH))
    whole = weight[: num_whole * PANEL_WIDTH].unflatten(0, (num_whole, PANEL_WIDTH))
    panels[:num_whole] = whole.transpose(1, 2)
    if num_left:
        panels[-1].zero_()[:, :num_left] = weight[-num_left:].t()
    return panels


@fast
def multiply_tile(
    num_rows: Any, left: Any, left_stride: Any, weights: Any, panel: Any, depth: Any, width: Any,
    bias: Any, residual: Any, out: Any, scratch: Any, tile: Any, num_tiles: Any,
) -> None:  # fmt: skip
    """Multiply up to TILE_ROWS rows by one panel, and prefetch a part of the next panel.

    A processor's own prefetcher stops at the end of a page, which is 32 rows of a panel. While
    later tiles find the panel in the second-level cache, memory would be idle.

    left:          the address of the first row; left_stride: from row to row, in floats
    weights, bias: of the whole layer, whose output rows are `width` floats
    residual, out: the addresses of the first row's outputs
    scratch:       the address of the thread's own tile
    tile:          the number of the tile, of `num_tiles` that are multiplied with the panel
    """
    begin = panel * PANEL_WIDTH
    num_columns = min(PANEL_WIDTH, width - begin)
    right = weights + begin * depth * FLOAT_BYTES
    result = out + begin * FLOAT_BYTES
    target, stride = (result, width) if num_columns == PANEL_WIDTH else (scratch, PANEL_WIDTH)
    pace = PANEL_WIDTH // num_tiles
    following = right + depth * (PANEL_WIDTH + tile * pace) * FLOAT_BYTES
    multiply(
        num_rows, left, left_stride, right, PANEL_WIDTH, depth, target, stride, following, pace
    )
    for row in range(num_rows):
        sums = target + row * stride * FLOAT_BYTES
        if bias != 0:
            add(bias + begin * FLOAT_BYTES, sums, num_columns)
        if residual != 0:
            add(residual + (row * width + begin) * FLOAT_BYTES, sums, num_columns)
        if num_columns < PANEL_WIDTH:
            copy(sums, result + row * width * FLOAT_BYTES, num_columns)


@fast
def tile_rows(tile: Any, num_tiles: Any, num_rows: Any) -> Any:
    """Return [begin, end): the rows of a tile.

    Rows are shared out evenly, since a tile of one row takes as long as a tile of four.
    """
    return tile * num_rows // num_tiles, (tile + 1) * num_rows // num_tiles


def body(arguments: Any) -> None:
    """Compute the calling thread's share of the tiles, panel after panel."""
    a = carray(arguments, (NUM_ARGUMENTS,))
    scratch = a[SCRATCH] + np.int64(thread_number()) * TILE_ROWS * PANEL_WIDTH * FLOAT_BYTES
    num_panels = (a[WIDTH] + PANEL_WIDTH - 1) // PANEL_WIDTH
    num_tiles = (a[NUM_ROWS] + TILE_ROWS - 1) // TILE_ROWS
    begin, end = own_share(num_panels * num_tiles)
    for each in range(begin, end):
        first, behind = tile_rows(each % num_tiles, num_tiles, a[NUM_ROWS])
        of_first = first * a[WIDTH] * FLOAT_BYTES
        residual = a[RESIDUAL]
        if residual != 0:
            residual += of_first
        multiply_tile(
            behind - first, a[ROWS] + first * a[ROW_STRIDE] * FLOAT_BYTES, a[ROW_STRIDE],
            a[WEIGHTS], each // num_tiles, a[DEPTH], a[WIDTH], a[BIAS], residual,
            a[OUT] + of_first, scratch, each % num_tiles, num_tiles,
        )  # fmt: skip


run = compile_parallel(body, "10q")
