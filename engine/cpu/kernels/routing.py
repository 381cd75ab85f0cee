"""Routing: chooses the experts of each row, and sorts the rows by expert.

It has three functions: `choose` takes the most likely experts of each row, `group` sorts the
choices by expert, and `combine` sums the outputs of each row's experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from engine.cpu.kernels.softmax import softmax
from engine.cpu.thread_pool import (
    FLOAT_BYTES,
    LONG_BYTES,
    compile_parallel,
    fast,
    floats_at,
    longs_at,
    own_share,
    thread_number,
)

(
    NUM_ROWS, NUM_EXPERTS, NUM_CHOSEN,
    IS_NORMALIZED,  # whether the weights of a row's choices are made to add up to one
    SCORES,  # (rows, experts) float32 of the router; they are overwritten
    EXPERTS, WEIGHTS,  # (rows, chosen) int64 and float32: the choices
    ROW_OF, PLACE_OF,  # (rows * chosen,) int64: the row of a place by expert; the place of a choice
    GROUPS,  # (experts, 2) int64: an expert, and the place behind its last
    FOUND,  # (rows * chosen, width) float32: what the experts gave, by place
    RESIDUAL, OUT, WIDTH,  # (rows, width) float32 each
    NUM_ARGUMENTS,
) = range(15)  # fmt: skip
LAYOUT = "14q"


@fast
def choose_experts(a: Any, row: Any) -> None:
    """Choose the most likely experts of a row; among equals, the first."""
    at, first = a[SCORES] + row * a[NUM_EXPERTS] * FLOAT_BYTES, row * a[NUM_CHOSEN]
    softmax(at, a[NUM_EXPERTS])
    shares = carray(floats_at(at), (a[NUM_EXPERTS],))
    experts = carray(longs_at(a[EXPERTS] + first * LONG_BYTES), (a[NUM_CHOSEN],))
    weights = carray(floats_at(a[WEIGHTS] + first * FLOAT_BYTES), (a[NUM_CHOSEN],))
    total = np.float32(0)
    for choice in range(a[NUM_CHOSEN]):
        best: Any = np.int64(0)
        for expert in range(1, a[NUM_EXPERTS]):
            if shares[expert] > shares[best]:
                best = expert
        experts[choice], weights[choice] = best, shares[best]
        total += shares[best]
        shares[best] = np.float32(-1)
    if a[IS_NORMALIZED] != 0:
        for choice in range(a[NUM_CHOSEN]):
            weights[choice] /= total


def choose_body(arguments: Any) -> None:
    a = carray(arguments, (NUM_ARGUMENTS,))
    begin, end = own_share(a[NUM_ROWS])
    for row in range(begin, end):
        choose_experts(a, row)


def group_body(arguments: Any) -> None:
    """Sort the choices by expert, and by row within an expert. One thread does it."""
    a = carray(arguments, (NUM_ARGUMENTS,))
    if thread_number() != 0:
        return
    num_choices = a[NUM_ROWS] * a[NUM_CHOSEN]
    experts = carray(longs_at(a[EXPERTS]), (num_choices,))
    row_of = carray(longs_at(a[ROW_OF]), (num_choices,))
    place_of = carray(longs_at(a[PLACE_OF]), (num_choices,))
    groups = carray(longs_at(a[GROUPS]), (a[NUM_EXPERTS], 2))
    for expert in range(a[NUM_EXPERTS]):
        groups[expert, 0], groups[expert, 1] = expert, 0
    for choice in range(num_choices):
        groups[experts[choice], 1] += 1
    behind = np.int64(0)
    for expert in range(a[NUM_EXPERTS]):
        # Where the group begins, which its choices advance to where it ends.
        behind, groups[expert, 1] = behind + groups[expert, 1], behind
    for choice in range(num_choices):
        place = groups[experts[choice], 1]
        groups[experts[choice], 1] = place + 1
        row_of[place], place_of[choice] = choice // a[NUM_CHOSEN], place


@fast
def combine_row(a: Any, row: Any) -> None:
    """Sum a row's residual and the outputs of its experts, in the order of its choice."""
    first, width = row * a[NUM_CHOSEN], a[WIDTH]
    weights = carray(floats_at(a[WEIGHTS] + first * FLOAT_BYTES), (a[NUM_CHOSEN],))
    places = carray(longs_at(a[PLACE_OF] + first * LONG_BYTES), (a[NUM_CHOSEN],))
    at = row * width * FLOAT_BYTES
    residual = carray(floats_at(a[RESIDUAL] + at), (width,))
    out = carray(floats_at(a[OUT] + at), (width,))
    for each in range(width):
        out[each] = np.float32(0)
    for choice in range(a[NUM_CHOSEN]):
        found = carray(floats_at(a[FOUND] + places[choice] * width * FLOAT_BYTES), (width,))
        for each in range(width):
            out[each] += weights[choice] * found[each]
    for each in range(width):
        out[each] += residual[each]


def combine_body(arguments: Any) -> None:
    a = carray(arguments, (NUM_ARGUMENTS,))
    begin, end = own_share(a[NUM_ROWS])
    for row in range(begin, end):
        combine_row(a, row)


choose = compile_parallel(choose_body, LAYOUT)
group = compile_parallel(group_body, LAYOUT)
combine = compile_parallel(combine_body, LAYOUT)
