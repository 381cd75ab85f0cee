"""Prompt kernel: attention of the tokens of prompts to themselves, for layers like LLaMA's.

Each prompt is read into its slot at once: its keys are turned by their positions and kept
with its values, and then every token attends to those up to its own. That is half of what an
attention without a mask computes, and for prompts of some hundred tokens torch's computes all
of it. Importing this fails where `compiled` does.

It is told what `kernel` is told, with the prompts in the place of the slots.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from engine.cpu.kernels.decode_attention import (
    CAPACITY,
    FIRST_ROW,
    GROUP,
    HEAD_SIZE,
    KEYS,
    KEYS_STRIDE,
    LAYOUT,
    NEW_KEYS,
    NEW_VALUES,
    NUM_ARGUMENTS,
    NUM_COLUMNS,
    NUM_HEADS,
    NUM_ROWS,
    NUM_SLOT_FIELDS,
    NUM_SLOTS,
    OUT,
    QUERY,
    QUERY_STRIDE,
    ROW_STRIDE,
    SCALE_BITS,
    SCRATCH,
    SCRATCH_WIDTH,
    SLOTS,
    VALUES,
    VALUES_STRIDE,
    copy,
    softmax,
    turn,
)
from engine.cpu.kernels.gemm_microkernel import TILE_ROWS, tile
from engine.cpu.kernels.llvm_ir import LANES
from engine.cpu.thread_pool import (
    FLOAT_BYTES,
    double_of_bits,
    fast,
    floats_at,
    in_pool,
    longs_at,
    own_share,
    thread_number,
)

BLOCK_TOKENS = 64  # whose queries one thread takes; the keys before them are transposed for it

narrow, wide = tile(1), tile(2)


def can_attend(head_size: int) -> bool:
    return head_size % LANES == 0


def scratch_width(num_tokens: int, head_size: int) -> int:
    """Floats that a thread needs for a prompt of so many tokens."""
    width = padded(num_tokens)
    return int(TILE_ROWS * (width + 2 * head_size) + head_size * width)


@fast
def padded(num_columns: Any) -> Any:
    return (num_columns + 2 * LANES - 1) // (2 * LANES) * (2 * LANES)


@fast
def multiply(
    num_rows: Any, left: Any, left_stride: Any, right: Any, right_stride: Any, depth: Any,
    out: Any, out_stride: Any, num_columns: Any,
) -> None:  # fmt: skip
    """As many columns as are asked for, and up to LANES - 1 more."""
    for at in range(0, num_columns, 2 * LANES):
        columns, target = right + at * FLOAT_BYTES, out + at * FLOAT_BYTES
        if at + LANES < num_columns:
            wide(num_rows, left, left_stride, columns, right_stride, depth, target, out_stride)
        else:
            narrow(num_rows, left, left_stride, columns, right_stride, depth, target, out_stride)


@fast
def transpose(rows: Any, num_rows: Any, size: Any, columns: Any, stride: Any) -> None:
    """rows, columns: addresses"""
    read = carray(floats_at(rows), (num_rows * size,))
    written = carray(floats_at(columns), (size * stride,))
    for each in range(size):
        for row in range(num_rows):
            written[each * stride + row] = read[row * size + each]


@fast
def attend_block(a: Any, prompt: Any, head: Any, begin: Any, end: Any, scratch: Any) -> None:
    """The queries of a prompt's tokens from `begin` to `end`, of all heads that share one of
    the keys."""
    size, group = a[HEAD_SIZE], a[GROUP]
    scale = np.float32(double_of_bits(a[SCALE_BITS]))
    width = padded(end)
    asked = scratch + TILE_ROWS * width * FLOAT_BYTES
    out = asked + TILE_ROWS * size * FLOAT_BYTES
    turned_keys = out + TILE_ROWS * size * FLOAT_BYTES
    of_head = head * prompt[CAPACITY] * size * FLOAT_BYTES
    transpose(prompt[KEYS] + of_head, end, size, turned_keys, width)
    for each in range(group):
        asking = head * group + each
        for first in range(begin, end, TILE_ROWS):
            length = min(first + TILE_ROWS, end)
            num_rows = length - first
            for row in range(num_rows):
                token = prompt[FIRST_ROW] + first + row
                query = a[QUERY] + (token * a[QUERY_STRIDE] + asking * size) * FLOAT_BYTES
                turn(a, token, query, asked + row * size * FLOAT_BYTES)
            multiply(num_rows, asked, size, turned_keys, width, size, scratch, width, length)
            for row in range(num_rows):
                at = scratch + row * width * FLOAT_BYTES
                scores = carray(floats_at(at), (length,))
                num_seen = first + row + 1
                for column in range(num_seen):
                    scores[column] *= scale
                softmax(at, num_seen)
                for column in range(num_seen, length):
                    scores[column] = np.float32(0)
            multiply(
                num_rows, scratch, width, prompt[VALUES] + of_head, size, length, out, size, size
            )
            for row in range(num_rows):
                token = prompt[FIRST_ROW] + first + row
                at = (token * a[NUM_HEADS] * group + asking) * size * FLOAT_BYTES
                copy(out + row * size * FLOAT_BYTES, a[OUT] + at, size)


@fast
def keep_token(a: Any, prompt: Any, column: Any) -> None:
    """Its keys and values, in every row of the slot."""
    size, token = a[HEAD_SIZE], prompt[FIRST_ROW] + column
    for head in range(a[NUM_HEADS]):
        key = a[NEW_KEYS] + (token * a[KEYS_STRIDE] + head * size) * FLOAT_BYTES
        value = a[NEW_VALUES] + (token * a[VALUES_STRIDE] + head * size) * FLOAT_BYTES
        of_first = (head * prompt[CAPACITY] + column) * size * FLOAT_BYTES
        turn(a, token, key, prompt[KEYS] + of_first)
        copy(value, prompt[VALUES] + of_first, size)
        for row in range(1, prompt[NUM_ROWS]):
            at = of_first + row * prompt[ROW_STRIDE] * FLOAT_BYTES
            copy(prompt[KEYS] + of_first, prompt[KEYS] + at, size)
            copy(value, prompt[VALUES] + at, size)


def keep_body(arguments: Any) -> None:
    """What each thread runs: its share of the tokens."""
    a = carray(arguments, (NUM_ARGUMENTS,))
    prompts = carray(longs_at(a[SLOTS]), (a[NUM_SLOTS], NUM_SLOT_FIELDS))
    total = np.int64(0)
    for index in range(a[NUM_SLOTS]):
        total += prompts[index, NUM_COLUMNS]
    begin, end = own_share(total)
    passed = np.int64(0)
    for index in range(a[NUM_SLOTS]):
        num_tokens = prompts[index, NUM_COLUMNS]
        for column in range(max(begin - passed, 0), min(end - passed, num_tokens)):
            keep_token(a, prompts[index], column)
        passed += num_tokens


def attend_body(arguments: Any) -> None:
    """What each thread runs: the blocks that begin in its share of the work."""
    a = carray(arguments, (NUM_ARGUMENTS,))
    prompts = carray(longs_at(a[SLOTS]), (a[NUM_SLOTS], NUM_SLOT_FIELDS))
    scratch = a[SCRATCH] + np.int64(thread_number()) * a[SCRATCH_WIDTH] * FLOAT_BYTES
    total = np.int64(0)
    for index in range(a[NUM_SLOTS]):
        for first in range(0, prompts[index, NUM_COLUMNS], BLOCK_TOKENS):
            total += a[NUM_HEADS] * cost_of(first, prompts[index, NUM_COLUMNS])
    begin, end = own_share(total)
    passed = np.int64(0)
    for index in range(a[NUM_SLOTS]):
        num_tokens = prompts[index, NUM_COLUMNS]
        for first in range(0, num_tokens, BLOCK_TOKENS):
            cost = cost_of(first, num_tokens)
            for head in range(a[NUM_HEADS]):
                if begin <= passed < end:
                    last = min(first + BLOCK_TOKENS, num_tokens)
                    attend_block(a, prompts[index], head, first, last, scratch)
                passed += cost


@fast
def cost_of(first: Any, num_tokens: Any) -> Any:
    """Of a block, in pairs of a query and a key; a key to transpose is as much as one."""
    last = min(first + BLOCK_TOKENS, num_tokens)
    return (last - first) * (first + last) // 2 + last


keep_prompts, attend_prompts = in_pool(keep_body, LAYOUT), in_pool(attend_body, LAYOUT)
