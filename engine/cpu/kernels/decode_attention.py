"""Decode attention: one query token of each row attends to the keys of its own cache.

torch's fused attention takes rows of one length, so each cache of a step would need its own call,
and most of the time would be call overhead. Here one call serves all rows of a layer: it writes
each row's new key and value, and attends to the row's columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from engine.cpu.kernels import dot_products
from engine.cpu.kernels.llvm_ir import LANES
from engine.cpu.kernels.softmax import exp, softmax
from engine.cpu.thread_pool import (
    FLOAT_BYTES,
    INT_BYTES,
    compile_parallel,
    double_of_bits,
    fast,
    floats_at,
    ints_at,
    longs_at,
    own_share,
    thread_number,
)

# The arguments, int64 each: addresses, and sizes and strides in elements.
NUM_HEADS, HEAD_SIZE = 0, 1  # of keys
SCRATCH, SCRATCH_WIDTH = 2, 3  # (threads, width) float32
NUM_CACHES, CACHES = 4, 5  # (caches, cache fields) int64
GROUP = 6  # query heads of each key head
SCALE_BITS = 7  # of a float64
QUERY, QUERY_STRIDE = 8, 9  # (rows, query heads, head size), and the stride of its rows
# (rows, heads, head size) each; 0: nothing is written, as in a cross-attention
NEW_KEYS, KEYS_STRIDE, NEW_VALUES, VALUES_STRIDE = 10, 11, 12, 13
OUT = 14  # (rows, query heads, head size)
# (query heads, width), whose last column is for the row's newest token. In an encoder the middle
# column is for the token itself, between earlier and later tokens. 0: no bias
BIAS, BIAS_WIDTH = 15, 16
# (rows, head size), of the rotary embedding of queries and new keys; 0: no rotary embedding
COS, SIN = 17, 18
SINKS = 19  # (query heads,), scores beside those of a head's columns; 0: none
SOFTCAP_BITS = 20  # of a float64, by which scores are bounded; 0.0: they are not
# For prompts: the number of later tokens that a token attends to, and the number of tokens up to
# and including itself. A row's cache begins with the first column that the row attends to.
AHEAD, WINDOW = 21, 22
NUM_ARGUMENTS = 23
LAYOUT = "7qd12qd2q"

UNBOUNDED = 2**62  # tokens, where a layer has no window

# The fields of a cache, int64 each.
KEYS, VALUES = 0, 1  # (rows, heads, capacity, head size) float32
CAPACITY, ROW_STRIDE = 2, 3  # ROW_STRIDE 0: all rows of the cache read the same keys
NUM_ROWS, NUM_COLUMNS, FIRST_ROW = 4, 5, 6  # the last column is the new token's
ANCESTORS = 7  # (rows, capacity) int32: the row that wrote a column; 0: each row its own
NUM_CACHE_FIELDS = 8

UNIT_COST = 8  # of a cache's head beside its columns, in columns


def scratch_width(num_columns: int, head_size: int) -> int:
    """Return the floats of scratch that a thread needs for a row of `num_columns`."""
    return num_columns + LANES + head_size


@fast
def dot(a: Any, b: Any, size: Any) -> Any:
    total = np.float32(0)
    for each in range(size):
        total += a[each] * b[each]
    return total


@fast
def tanh(x: Any) -> Any:
    """Return the hyperbolic tangent of `x`."""
    power = exp(np.float32(-2) * abs(x))
    result = (np.float32(1) - power) / (np.float32(1) + power)
    return result if x >= 0 else -result


@fast
def bound(numbers: Any, length: Any, softcap: Any) -> None:
    """Apply a soft cap to numbers in place."""
    for each in range(length):
        numbers[each] = softcap * tanh(numbers[each] / softcap)


@fast
def attend(
    query: Any, keys: Any, values: Any, ancestors: Any, stride: Any, length: Any, size: Any,
    scale: Any, softcap: Any, bias: Any, sink: Any, scratch: Any, out: Any, following: Any,
) -> None:  # fmt: skip
    """Attend with one query head of one row.

    query, out:   addresses of a head
    keys, values: addresses of the first column
    ancestors:    as in a cache
    softcap:      0: none
    bias:         the address of the first column's; 0: none
    sink:         the address of the head's; 0: none
    scratch:      of `scratch_width` floats
    following:    the address of the keys to prefetch
    """
    scores = carray(floats_at(scratch), (length + 1,))
    if dot_products.fits(size):
        dot_products.scores(size, query, keys, ancestors, stride, length, scratch, values)
    else:
        score(query, keys, ancestors, stride, length, size, scores)
    for column in range(length):
        scores[column] *= scale
    if softcap != np.float32(0):
        bound(scores, length, softcap)
    if bias != 0:
        added = carray(floats_at(bias), (length,))
        for column in range(length):
            scores[column] += added[column]
    if sink != 0:
        scores[length] = carray(floats_at(sink), (1,))[0]
        softmax(scratch, length + 1)
    else:
        softmax(scratch, length)
    if dot_products.fits(size):
        dot_products.weighed(size, scratch, values, ancestors, stride, length, out, following)
    else:
        weigh(scores, values, ancestors, stride, length, size, out)


@fast
def score(
    query: Any, keys: Any, ancestors: Any, stride: Any, length: Any, size: Any, scores: Any
) -> None:
    """Compute scores like `dot_products.scores`, for heads of any size."""
    query_head, rows = carray(floats_at(query), (size,)), carray(ints_at(ancestors), (length,))
    for column in range(length):
        offset = column * size
        if ancestors != 0:
            offset += rows[column] * stride
        key = carray(floats_at(keys + offset * FLOAT_BYTES), (size,))
        scores[column] = dot(query_head, key, size)


@fast
def weigh(
    scores: Any, values: Any, ancestors: Any, stride: Any, length: Any, size: Any, out: Any
) -> None:
    """Sum weighted values like `dot_products.weighed`, for heads of any size."""
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
    """Copy `size` floats. source, target: addresses"""
    read, written = carray(floats_at(source), (size,)), carray(floats_at(target), (size,))
    for each in range(size):
        written[each] = read[each]


@fast
def add(source: Any, target: Any, size: Any) -> None:
    """Add `size` floats at the address `source` to those at `target`."""
    added, total = carray(floats_at(source), (size,)), carray(floats_at(target), (size,))
    for each in range(size):
        total[each] += added[each]


@fast
def rotate_head(x: Any, cos: Any, sin: Any, out: Any, half: Any) -> None:
    """Apply the rotary embedding to a head in LLaMA's order: number i pairs with i + half.

    x, cos, sin, out: addresses of (head size,), twice `half`; see arXiv:2104.09864
    """
    for each in range(half):
        first, second = x[each], x[half + each]
        out[each] = first * cos[each] - second * sin[each]
        out[half + each] = second * cos[half + each] + first * sin[half + each]


@fast
def rotate(a: Any, row: Any, source: Any, target: Any) -> None:
    """Apply the rotary embedding to a head at its row's position. source, target: addresses"""
    size = a[HEAD_SIZE]
    of_row = row * size * FLOAT_BYTES
    rotate_head(
        carray(floats_at(source), (size,)), carray(floats_at(a[COS] + of_row), (size,)),
        carray(floats_at(a[SIN] + of_row), (size,)), carray(floats_at(target), (size,)), size // 2,
    )  # fmt: skip


@fast
def attend_head(a: Any, cache: Any, head: Any, scratch: Any, rotated: Any) -> None:
    """Attend for all rows of a cache with one key head and the query heads that share it.

    rotated: the address of scratch for one head
    """
    size, group = a[HEAD_SIZE], a[GROUP]
    capacity, length, stride = cache[CAPACITY], cache[NUM_COLUMNS], cache[ROW_STRIDE]
    scale = np.float32(double_of_bits(a[SCALE_BITS]))
    softcap = np.float32(double_of_bits(a[SOFTCAP_BITS]))
    of_head = head * capacity * size
    for row in range(cache[NUM_ROWS]):
        if a[NEW_KEYS] != 0:
            new_keys = (cache[FIRST_ROW] + row) * a[KEYS_STRIDE] + head * size
            new_values = (cache[FIRST_ROW] + row) * a[VALUES_STRIDE] + head * size
            last = (of_head + row * stride + (length - 1) * size) * FLOAT_BYTES
            if a[COS] != 0:
                new_key = a[NEW_KEYS] + new_keys * FLOAT_BYTES
                rotate(a, cache[FIRST_ROW] + row, new_key, cache[KEYS] + last)
            else:
                copy(a[NEW_KEYS] + new_keys * FLOAT_BYTES, cache[KEYS] + last, size)
            copy(a[NEW_VALUES] + new_values * FLOAT_BYTES, cache[VALUES] + last, size)
    for row in range(cache[NUM_ROWS]):
        ancestors, first = cache[ANCESTORS], of_head
        if ancestors != 0:
            ancestors += row * capacity * INT_BYTES
        else:
            first += row * stride
        next_head = first + capacity * size
        for each in range(group):
            query_head = head * group + each
            bias = a[BIAS]
            if bias != 0:
                bias += ((query_head + 1) * a[BIAS_WIDTH] - length) * FLOAT_BYTES
            sink = a[SINKS]
            if sink != 0:
                sink += query_head * FLOAT_BYTES
            at = ((cache[FIRST_ROW] + row) * a[NUM_HEADS] * group + query_head) * size * FLOAT_BYTES
            query = a[QUERY] + (
                (cache[FIRST_ROW] + row) * a[QUERY_STRIDE] + query_head * size
            ) * FLOAT_BYTES  # fmt: skip
            if a[COS] != 0:
                rotate(a, cache[FIRST_ROW] + row, query, rotated)
                query = rotated
            attend(
                query, cache[KEYS] + first * FLOAT_BYTES,
                cache[VALUES] + first * FLOAT_BYTES, ancestors, stride, length, size,
                scale, softcap, bias, sink, scratch, a[OUT] + at,
                cache[KEYS] + next_head * FLOAT_BYTES,
            )  # fmt: skip


def body(arguments: Any) -> None:
    """Process the heads in the calling thread's share of the work."""
    a = carray(arguments, (NUM_ARGUMENTS,))
    caches = carray(longs_at(a[CACHES]), (a[NUM_CACHES], NUM_CACHE_FIELDS))
    scratch = a[SCRATCH] + np.int64(thread_number()) * a[SCRATCH_WIDTH] * FLOAT_BYTES
    rotated = scratch + (a[SCRATCH_WIDTH] - a[HEAD_SIZE]) * FLOAT_BYTES
    total = np.int64(0)
    for index in range(a[NUM_CACHES]):
        cost = (caches[index, NUM_COLUMNS] + UNIT_COST) * caches[index, NUM_ROWS]
        total += cost * a[NUM_HEADS]
    begin, end = own_share(total)
    passed = np.int64(0)
    for index in range(a[NUM_CACHES]):
        cost = (caches[index, NUM_COLUMNS] + UNIT_COST) * caches[index, NUM_ROWS]
        for head in range(a[NUM_HEADS]):
            if begin <= passed < end:
                attend_head(a, caches[index], head, scratch, rotated)
            passed += cost


run = compile_parallel(body, LAYOUT)
