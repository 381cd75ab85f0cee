"""Prefill attention: the tokens of prompts attend within their prompts, in LLaMA-like layers.

Each prompt is written to its cache at once: its keys, rotated by their positions, and its values.
Then every token attends to the tokens up to itself. That is half the work of masked attention,
which torch computes in full for prompts of some hundred tokens. Columns before a window are skipped
too. In an encoder attention is bidirectional, and a bias by distance may be added to the scores.

The arguments are those of `decode_attention`, with prompts in the place of caches. A cache may hold
the first columns of its prompt already; then the rows hold the rest only. A token's result has the
same bits either way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from engine.cpu.kernels.decode_attention import (
    AHEAD,
    ANCESTORS,
    BIAS,
    BIAS_WIDTH,
    CACHES,
    CAPACITY,
    COS,
    FIRST_ROW,
    GROUP,
    HEAD_SIZE,
    KEYS,
    KEYS_STRIDE,
    LAYOUT,
    NEW_KEYS,
    NEW_VALUES,
    NUM_ARGUMENTS,
    NUM_CACHE_FIELDS,
    NUM_CACHES,
    NUM_COLUMNS,
    NUM_HEADS,
    NUM_ROWS,
    OUT,
    QUERY,
    QUERY_STRIDE,
    ROW_STRIDE,
    SCALE_BITS,
    SCRATCH,
    SCRATCH_WIDTH,
    SOFTCAP_BITS,
    VALUES,
    VALUES_STRIDE,
    WINDOW,
    bound,
    copy,
    rotate,
)
from engine.cpu.kernels.gemm_microkernel import TILE_ROWS, microkernel
from engine.cpu.kernels.llvm_ir import LANES
from engine.cpu.kernels.softmax import softmax
from engine.cpu.kernels.transpose import PANEL_WIDTH, transpose
from engine.cpu.thread_pool import (
    FLOAT_BYTES,
    compile_parallel,
    double_of_bits,
    fast,
    floats_at,
    longs_at,
    own_share,
    thread_number,
)

START = ANCESTORS  # in a prompt's cache, which has no ancestors: its first column in the rows
BLOCK_TOKENS = 64  # whose queries one thread takes; the keys before them are transposed for it

narrow, wide = microkernel(1), microkernel(2)


def can_attend(head_size: int) -> bool:
    """Return whether heads of this size are whole registers."""
    return head_size % LANES == 0


def scratch_width(num_tokens: int, head_size: int) -> int:
    """Return the floats of scratch that a thread needs for a prompt of `num_tokens`."""
    width = padded(num_tokens)
    return int(TILE_ROWS * (width + 2 * head_size) + head_size * width)


@fast
def padded(num_columns: Any) -> Any:
    return (num_columns + PANEL_WIDTH - 1) // PANEL_WIDTH * PANEL_WIDTH


@fast
def multiply(
    num_rows: Any, left: Any, left_stride: Any, right: Any, right_stride: Any, panel_stride: Any,
    depth: Any, out: Any, out_stride: Any, num_columns: Any,
) -> None:  # fmt: skip
    """Multiply up to TILE_ROWS rows by `num_columns` columns; writes up to LANES - 1 numbers more.

    left, right, out: addresses of (num_rows, depth), (depth, columns), (num_rows, columns), each
                      with the stride of its rows in floats
    panel_stride:     floats from one panel of PANEL_WIDTH columns on the right to the next
    """
    for at in range(0, num_columns, PANEL_WIDTH):
        columns = right + at // PANEL_WIDTH * panel_stride * FLOAT_BYTES
        target = out + at * FLOAT_BYTES
        if at + LANES < num_columns:
            wide(num_rows, left, left_stride, columns, right_stride, depth, target, out_stride)
        else:
            narrow(num_rows, left, left_stride, columns, right_stride, depth, target, out_stride)


@fast
def first_seen(a: Any, token: Any) -> Any:
    """Return the first column that a token of a prompt attends to."""
    return max(token + 1 - a[WINDOW], 0)


@fast
def end_seen(a: Any, prompt: Any, token: Any) -> Any:
    """Return the column after the last that a token of a prompt attends to."""
    return min(token + 1 + a[AHEAD], prompt[NUM_COLUMNS])


@fast
def whole_panels(column: Any) -> Any:
    """Return the first column of the panel that contains a column."""
    return column // PANEL_WIDTH * PANEL_WIDTH


@fast
def place(a: Any, token: Any, source: Any, target: Any) -> None:
    """Copy a head, with the rotary embedding if there is one. source, target: addresses"""
    if a[COS] != 0:
        rotate(a, token, source, target)
    else:
        copy(source, target, a[HEAD_SIZE])


@fast
def bias_at(a: Any, query_head: Any, distance: Any) -> Any:
    """Return the address of a head's bias for a key `distance` tokens after the query's token."""
    middle = a[BIAS_WIDTH] // 2
    return a[BIAS] + (query_head * a[BIAS_WIDTH] + middle + distance) * FLOAT_BYTES


@fast
def scale_scores(scores: Any, begin: Any, end: Any, scale: Any, bias: Any) -> None:
    """Scale the scores of the columns in [begin, end) and add a bias.

    scores: (columns,) float32
    bias:   the address of column 0's; 0: none
    """
    if bias == 0:
        for column in range(begin, end):
            scores[column] *= scale
        return
    added = carray(floats_at(bias), (end,))
    for column in range(begin, end):
        scores[column] = scale * scores[column] + added[column]


@fast
def attend_block(a: Any, prompt: Any, head: Any, begin: Any, end: Any, scratch: Any) -> None:
    """Attend with the prompt's tokens in [begin, end), for the query heads of one key head."""
    size, group = a[HEAD_SIZE], a[GROUP]
    scale = np.float32(double_of_bits(a[SCALE_BITS]))
    softcap = np.float32(double_of_bits(a[SOFTCAP_BITS]))
    behind, base = end_seen(a, prompt, end - 1), whole_panels(first_seen(a, begin))
    width = padded(behind)
    queries = scratch + TILE_ROWS * width * FLOAT_BYTES
    out = queries + TILE_ROWS * size * FLOAT_BYTES
    transposed_keys = out + TILE_ROWS * size * FLOAT_BYTES
    of_head = head * prompt[CAPACITY] * size * FLOAT_BYTES
    seen_keys = prompt[KEYS] + of_head + base * size * FLOAT_BYTES
    transpose(seen_keys, behind - base, size, transposed_keys)
    for each in range(group):
        query_head = head * group + each
        for first in range(begin, end, TILE_ROWS):
            num_rows = min(TILE_ROWS, end - first)
            # Whole panels before the first column that the tile attends to are left out.
            start = whole_panels(first_seen(a, first))
            num_columns = end_seen(a, prompt, first + num_rows - 1) - start
            for row in range(num_rows):
                token = prompt[FIRST_ROW] + first + row - prompt[START]
                query = a[QUERY] + (token * a[QUERY_STRIDE] + query_head * size) * FLOAT_BYTES
                place(a, token, query, queries + row * size * FLOAT_BYTES)
            multiply(
                num_rows, queries, size, transposed_keys + (start - base) * size * FLOAT_BYTES,
                PANEL_WIDTH, size * PANEL_WIDTH, size, scratch, width, num_columns,
            )  # fmt: skip
            for row in range(num_rows):
                at = scratch + row * width * FLOAT_BYTES
                scores = carray(floats_at(at), (num_columns,))
                unseen = first_seen(a, first + row) - start
                last = end_seen(a, prompt, first + row) - start
                seen_at, num_seen = at + unseen * FLOAT_BYTES, last - unseen
                bias = 0
                if a[BIAS] != 0:
                    bias = bias_at(a, query_head, start - first - row)
                scale_scores(scores, unseen, last, scale, bias)
                if softcap != np.float32(0):
                    bound(carray(floats_at(seen_at), (num_seen,)), num_seen, softcap)
                softmax(seen_at, num_seen)
                for column in range(unseen):
                    scores[column] = np.float32(0)
                for column in range(last, num_columns):
                    scores[column] = np.float32(0)
            seen_values = prompt[VALUES] + of_head + start * size * FLOAT_BYTES
            multiply(
                num_rows, scratch, width, seen_values, size, PANEL_WIDTH, num_columns, out, size,
                size,
            )  # fmt: skip
            for row in range(num_rows):
                token = prompt[FIRST_ROW] + first + row - prompt[START]
                at = (token * a[NUM_HEADS] * group + query_head) * size * FLOAT_BYTES
                copy(out + row * size * FLOAT_BYTES, a[OUT] + at, size)


@fast
def write_token(a: Any, prompt: Any, column: Any) -> None:
    """Write a token's rotated keys, and its values, into every row of the cache."""
    size, token = a[HEAD_SIZE], prompt[FIRST_ROW] + column - prompt[START]
    for head in range(a[NUM_HEADS]):
        key = a[NEW_KEYS] + (token * a[KEYS_STRIDE] + head * size) * FLOAT_BYTES
        value = a[NEW_VALUES] + (token * a[VALUES_STRIDE] + head * size) * FLOAT_BYTES
        of_first = (head * prompt[CAPACITY] + column) * size * FLOAT_BYTES
        place(a, token, key, prompt[KEYS] + of_first)
        copy(value, prompt[VALUES] + of_first, size)
        for row in range(1, prompt[NUM_ROWS]):
            at = of_first + row * prompt[ROW_STRIDE] * FLOAT_BYTES
            copy(prompt[KEYS] + of_first, prompt[KEYS] + at, size)
            copy(value, prompt[VALUES] + at, size)


def write_body(arguments: Any) -> None:
    """Write the calling thread's share of the tokens."""
    a = carray(arguments, (NUM_ARGUMENTS,))
    prompts = carray(longs_at(a[CACHES]), (a[NUM_CACHES], NUM_CACHE_FIELDS))
    total = np.int64(0)
    for index in range(a[NUM_CACHES]):
        total += prompts[index, NUM_COLUMNS] - prompts[index, START]
    begin, end = own_share(total)
    passed = np.int64(0)
    for index in range(a[NUM_CACHES]):
        start = prompts[index, START]
        num_tokens = prompts[index, NUM_COLUMNS] - start
        for each in range(max(begin - passed, 0), min(end - passed, num_tokens)):
            write_token(a, prompts[index], start + each)
        passed += num_tokens


def attend_body(arguments: Any) -> None:
    """Process the blocks in the calling thread's share of the work."""
    a = carray(arguments, (NUM_ARGUMENTS,))
    prompts = carray(longs_at(a[CACHES]), (a[NUM_CACHES], NUM_CACHE_FIELDS))
    scratch = a[SCRATCH] + np.int64(thread_number()) * a[SCRATCH_WIDTH] * FLOAT_BYTES
    total = np.int64(0)
    for index in range(a[NUM_CACHES]):
        start, num_tokens = prompts[index, START], prompts[index, NUM_COLUMNS]
        for first in range(start, num_tokens, BLOCK_TOKENS):
            total += a[NUM_HEADS] * cost_of(a, prompts[index], first)
    begin, end = own_share(total)
    passed = np.int64(0)
    for index in range(a[NUM_CACHES]):
        start, num_tokens = prompts[index, START], prompts[index, NUM_COLUMNS]
        for first in range(start, num_tokens, BLOCK_TOKENS):
            cost = cost_of(a, prompts[index], first)
            for head in range(a[NUM_HEADS]):
                if begin <= passed < end:
                    last = min(first + BLOCK_TOKENS, num_tokens)
                    attend_block(a, prompts[index], head, first, last, scratch)
                passed += cost


@fast
def cost_of(a: Any, prompt: Any, first: Any) -> Any:
    """Return the cost of a block in query-key pairs; transposing a key counts as one."""
    last = min(first + BLOCK_TOKENS, prompt[NUM_COLUMNS])
    middle = (first + last) // 2
    num_seen = end_seen(a, prompt, middle) - first_seen(a, middle)
    num_keys = end_seen(a, prompt, last - 1) - first_seen(a, first)
    return (last - first) * num_seen + num_keys


write_prompts = compile_parallel(write_body, LAYOUT)
attend_prompts = compile_parallel(attend_body, LAYOUT)
