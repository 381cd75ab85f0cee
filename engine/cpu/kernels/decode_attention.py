"""Kernel: attention of one token in each row to keys of any number, compiled for this CPU.

The fused attention of torch wants rows of one length, so that without this each row of a
step needs a call of its own, and most of the time is spent in calling. Here one call does
a layer for all rows: it writes the new column of each and attends to what the row has.

Importing it fails where `compiled` does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from engine.cpu.kernels import dot_products
from engine.cpu.kernels.argmax import argmax_among
from engine.cpu.kernels.llvm_ir import LANES
from engine.cpu.kernels.rotary_embedding import turn_head
from engine.cpu.thread_pool import (
    FLOAT_BYTES,
    INT_BYTES,
    InPool,
    double_of_bits,
    fast,
    float_of_bits,
    floats_at,
    in_pool,
    ints_at,
    longs_at,
    own_share,
    thread_number,
)

# What the kernel is told, as int64: addresses, and sizes in elements.
NUM_HEADS, HEAD_SIZE = 0, 1  # of keys
SCRATCH, SCRATCH_WIDTH = 2, 3  # (threads, width)
NUM_SLOTS, SLOTS = 4, 5  # (slots, slot fields)
GROUP = 6  # query heads of each head of keys
SCALE_BITS = 7  # of a float64
QUERY, QUERY_STRIDE = 8, 9  # (rows, heads, head size), and from row to row of it
NEW_KEYS, KEYS_STRIDE, NEW_VALUES, VALUES_STRIDE = 10, 11, 12, 13  # likewise; no new ones: 0
OUT = 14  # (rows, query heads, head size)
BIAS, BIAS_WIDTH = 15, 16  # (query heads, width), of which the last column is the new one's; or 0
# (rows, head size), by which queries and new keys are turned (`rotary`); 0: they are as they are
COS, SIN = 17, 18
NUM_ARGUMENTS = 19
LAYOUT = "7qd11q"

# What it is told of a slot, likewise.
KEYS, VALUES = 0, 1  # (rows, heads, capacity, head size) float32
CAPACITY, ROW_STRIDE = 2, 3  # 0: all rows read the same
NUM_ROWS, NUM_COLUMNS, FIRST_ROW = 4, 5, 6  # columns with the new one, which is the last
ANCESTORS = 7  # (rows, capacity) int32: the row in which a column is; 0: each in its own
NUM_SLOT_FIELDS = 8

UNIT_COST = 8  # of a head of a slot beside its columns, in columns


def scratch_width(num_columns: int, head_size: int) -> int:
    """Floats that a thread needs for a row of so many columns."""
    return num_columns + LANES + head_size


def kernel() -> InPool:
    """The kernel, to be called with a number of threads and what it is told."""
    return in_pool(body, LAYOUT)


@fast
def exp(x: Any) -> Any:
    """e to the x of at most 0, within 2 ulp; unlike the library's it is computed for many at once.

    Cephes' expf: 2 to the n, times a polynomial of what is left of x.
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


@fast
def softmax(at: Any, length: Any) -> None:
    """Of so many floats at an address."""
    scores, argmax = carray(floats_at(at), (length,)), argmax_among(at, length)
    total = np.float32(0)
    for column in range(length):
        scores[column] = exp(scores[column] - argmax)
        total += scores[column]
    share = np.float32(1) / total
    for column in range(length):
        scores[column] *= share


@fast
def dot(a: Any, b: Any, size: Any) -> Any:
    total = np.float32(0)
    for each in range(size):
        total += a[each] * b[each]
    return total


@fast
def attend(
    query: Any, keys: Any, values: Any, ancestors: Any, stride: Any, length: Any, size: Any,
    scale: Any, bias: Any, scratch: Any, out: Any, following: Any,
) -> None:  # fmt: skip
    """One query of one row; all but numbers are addresses. scratch: of `scratch_width` floats"""
    scores = carray(floats_at(scratch), (length,))
    if dot_products.fits(size):
        dot_products.scores(size, query, keys, ancestors, stride, length, scratch, values)
    else:
        score(query, keys, ancestors, stride, length, size, scores)
    for column in range(length):
        scores[column] *= scale
    if bias != 0:
        added = carray(floats_at(bias), (length,))
        for column in range(length):
            scores[column] += added[column]
    softmax(scratch, length)
    if dot_products.fits(size):
        dot_products.weighed(size, scratch, values, ancestors, stride, length, out, following)
    else:
        weigh(scores, values, ancestors, stride, length, size, out)


@fast
def score(
    query: Any, keys: Any, ancestors: Any, stride: Any, length: Any, size: Any, scores: Any
) -> None:
    """What `dot_products.scores` does, for heads of any size."""
    asked, rows = carray(floats_at(query), (size,)), carray(ints_at(ancestors), (length,))
    for column in range(length):
        offset = column * size
        if ancestors != 0:
            offset += rows[column] * stride
        key = carray(floats_at(keys + offset * FLOAT_BYTES), (size,))
        scores[column] = dot(asked, key, size)


@fast
def weigh(
    scores: Any, values: Any, ancestors: Any, stride: Any, length: Any, size: Any, out: Any
) -> None:
    """What `dot_products.weighed` does, likewise."""
    total, rows = carray(floats_at(out), (size,)), carray(ints_at(ancestors), (length,))
    for each in range(size):
        total[each] = np.float32(0)
    for column in range(length):
        offset = column * size
        if ancestors != 0:
            offset += rows[column] * stride
        value = carray(floats_at(values + offset * FLOAT_BYTES), (size,))
        share = scores[column]
        for each in range(size):
            total[each] += share * value[each]


@fast
def copy(source: Any, target: Any, size: Any) -> None:
    read, written = carray(floats_at(source), (size,)), carray(floats_at(target), (size,))
    for each in range(size):
        written[each] = read[each]


@fast
def turn(a: Any, row: Any, source: Any, target: Any) -> None:
    """A head of a row by the row's position. source, target: addresses"""
    size = a[HEAD_SIZE]
    of_row = row * size * FLOAT_BYTES
    turn_head(
        carray(floats_at(source), (size,)), carray(floats_at(a[COS] + of_row), (size,)),
        carray(floats_at(a[SIN] + of_row), (size,)), carray(floats_at(target), (size,)), size // 2,
    )  # fmt: skip


@fast
def attend_head(a: Any, slot: Any, head: Any, scratch: Any, turned: Any) -> None:
    """All rows of a slot, one head of the keys, and the query heads that share it.

    turned: the address of room for a head
    """
    size, group = a[HEAD_SIZE], a[GROUP]
    capacity, length, stride = slot[CAPACITY], slot[NUM_COLUMNS], slot[ROW_STRIDE]
    scale = np.float32(double_of_bits(a[SCALE_BITS]))
    of_head = head * capacity * size
    for row in range(slot[NUM_ROWS]):
        if a[NEW_KEYS] != 0:
            new_keys = (slot[FIRST_ROW] + row) * a[KEYS_STRIDE] + head * size
            new_values = (slot[FIRST_ROW] + row) * a[VALUES_STRIDE] + head * size
            last = (of_head + row * stride + (length - 1) * size) * FLOAT_BYTES
            if a[COS] != 0:
                new_key = a[NEW_KEYS] + new_keys * FLOAT_BYTES
                turn(a, slot[FIRST_ROW] + row, new_key, slot[KEYS] + last)
            else:
                copy(a[NEW_KEYS] + new_keys * FLOAT_BYTES, slot[KEYS] + last, size)
            copy(a[NEW_VALUES] + new_values * FLOAT_BYTES, slot[VALUES] + last, size)
    for row in range(slot[NUM_ROWS]):
        ancestors, first = slot[ANCESTORS], of_head
        if ancestors != 0:
            ancestors += row * capacity * INT_BYTES
        else:
            first += row * stride
        next_head = first + capacity * size
        for each in range(group):
            asking = head * group + each
            bias = a[BIAS]
            if bias != 0:
                bias += ((asking + 1) * a[BIAS_WIDTH] - length) * FLOAT_BYTES
            at = ((slot[FIRST_ROW] + row) * a[NUM_HEADS] * group + asking) * size * FLOAT_BYTES
            query = a[QUERY] + (
                (slot[FIRST_ROW] + row) * a[QUERY_STRIDE] + asking * size
            ) * FLOAT_BYTES  # fmt: skip
            if a[COS] != 0:
                turn(a, slot[FIRST_ROW] + row, query, turned)
                query = turned
            attend(
                query, slot[KEYS] + first * FLOAT_BYTES,
                slot[VALUES] + first * FLOAT_BYTES, ancestors, stride, length, size,
                scale, bias, scratch, a[OUT] + at,
                slot[KEYS] + next_head * FLOAT_BYTES,
            )  # fmt: skip


def body(arguments: Any) -> None:
    """What each thread of the pool runs: the heads that begin in its share of the work."""
    a = carray(arguments, (NUM_ARGUMENTS,))
    slots = carray(longs_at(a[SLOTS]), (a[NUM_SLOTS], NUM_SLOT_FIELDS))
    scratch = a[SCRATCH] + np.int64(thread_number()) * a[SCRATCH_WIDTH] * FLOAT_BYTES
    turned = scratch + (a[SCRATCH_WIDTH] - a[HEAD_SIZE]) * FLOAT_BYTES
    total = np.int64(0)
    for index in range(a[NUM_SLOTS]):
        cost = (slots[index, NUM_COLUMNS] + UNIT_COST) * slots[index, NUM_ROWS]
        total += cost * a[NUM_HEADS]
    begin, end = own_share(total)
    passed = np.int64(0)
    for index in range(a[NUM_SLOTS]):
        cost = (slots[index, NUM_COLUMNS] + UNIT_COST) * slots[index, NUM_ROWS]
        for head in range(a[NUM_HEADS]):
            if begin <= passed < end:
                attend_head(a, slots[index], head, scratch, turned)
            passed += cost
