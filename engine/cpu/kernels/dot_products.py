"""Dot products of a query with many keys, and weighted sums of many values, in LLVM IR.

A head fills a few registers. numba would compile such loops to a horizontal sum for each key, and
would keep the sum of values in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from numba import types
from numba.extending import intrinsic

from engine.cpu.kernels.llvm_ir import (
    BYTE,
    FLOAT,
    INT,
    LANES,
    LONG,
    ZEROS,
    across,
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
from engine.cpu.thread_pool import FLOAT_BYTES, INT_BYTES, fast

MAX_REGISTERS = 8  # of a head
MAX_AT_ONCE = 4  # columns; an addition takes as long as starting four
# With more, a processor no longer sees the order of the reads, and reads nothing ahead.
MAX_REGISTERS_AT_ONCE = 8
AHEAD = 16  # columns

AddressOf = Callable[[Any], Any]  # of a column


def write_scores(
    builder: Any, num_registers: int, query: Any, keys: Any, ancestors: Any, stride: Any,
    length: Any, out: Any, following: Any,
) -> None:  # fmt: skip
    """Emit code that writes query . key of each column, and up to MAX_AT_ONCE - 1 numbers after.

    query, keys, out: addresses; see `by_head_size` for the others
    """
    query_parts = [load(builder, query, number(each * LANES)) for each in range(num_registers)]
    at_once, last = columns_at_once(num_registers), builder.sub(length, number(1))

    def write_block(at: Any, _sums: list[Any], address_of: AddressOf) -> list[Any]:
        prefetch_ahead(builder, num_registers, keys, at, at_once, length, following)
        sums = []
        for each in range(at_once):
            key, total = address_of(builder.add(at, number(each))), ZEROS
            for register, part in enumerate(query_parts):
                total = plus_product(
                    builder, total, part, load(builder, key, number(register * LANES))
                )
            sums.append(total)
        store(builder, across(builder, sums), out, at)
        return []

    def write(address_of: AddressOf) -> None:
        def of_column_or_last(column: Any) -> Any:
            is_before = builder.icmp_signed("<", column, last)
            return address_of(builder.select(is_before, column, last))

        whole = builder.and_(length, number(-at_once))
        of_whole = partial(write_block, address_of=address_of)
        loop(builder, number(0), whole, at_once, of_whole)
        if at_once > 1:
            loop(builder, whole, length, at_once, partial(of_whole, address_of=of_column_or_last))

    for_columns(builder, write, num_registers, keys, ancestors, stride)


def write_weighed(
    builder: Any, num_registers: int, shares: Any, values: Any, ancestors: Any, stride: Any,
    length: Any, out: Any, following: Any,
) -> None:  # fmt: skip
    """Emit code that writes the weighted sum of the values of all columns.

    shares, values, out: addresses; see `by_head_size` for the others
    """
    at_once = columns_at_once(num_registers)

    def write(address_of: AddressOf) -> None:
        def add_columns(at: Any, sums: list[Any]) -> list[Any]:
            totals: list[Any] = []
            num_columns = len(sums) // num_registers
            prefetch_ahead(builder, num_registers, values, at, num_columns, length, following)
            for each in range(num_columns):
                column = builder.add(at, number(each))
                share = builder.load(pointer(builder, shares, column, FLOAT))
                value = address_of(column)
                for register in range(num_registers):
                    total, part = sums[len(totals)], load(builder, value, number(register * LANES))
                    totals.append(plus_product(builder, total, spread(builder, share), part))
            return totals

        whole = builder.sub(length, builder.srem(length, number(at_once)))
        sums = [ZEROS] * (at_once * num_registers)
        sums = loop(builder, number(0), whole, at_once, add_columns, sums)
        totals = sums[:num_registers]
        for each in range(num_registers, len(sums)):
            total = builder.fadd(totals[each % num_registers], sums[each])
            totals[each % num_registers] = total
        if at_once > 1:
            totals = loop(builder, whole, length, 1, add_columns, totals)
        for register, total in enumerate(totals):
            store(builder, total, out, number(register * LANES))

    for_columns(builder, write, num_registers, values, ancestors, stride)


def by_head_size(write: Callable[..., None]) -> Any:
    """Return a function that runs the code that `write` emits for its head size.

    The function takes the head size, which must satisfy `fits`, and the arguments of `write`: two
    addresses; `ancestors`, the address of the row of each column, int32, or 0 if the first row has
    all; `stride`, the floats from row to row; the number of columns; the address of the result; and
    `following`, the address to prefetch after the columns.
    """

    @intrinsic
    def function(
        typing_context: Any, size: Any, first: Any, columns: Any, ancestors: Any, stride: Any,
        length: Any, out: Any, following: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cases = {
                registers * LANES: partial(write, builder, registers, *args[1:])
                for registers in range(1, MAX_REGISTERS + 1)
            }
            by_case(builder, args[0], cases)
            return context.get_dummy_value()

        return types.none(*[types.int64] * 8), generate

    return function


scores, weighed = by_head_size(write_scores), by_head_size(write_weighed)


@fast
def fits(head_size: Any) -> Any:
    """Return whether heads of this size fill a small number of whole registers."""
    return head_size % LANES == 0 and head_size <= MAX_REGISTERS * LANES


def columns_at_once(num_registers: int) -> int:
    """Return how many columns are computed at once, a power of two."""
    at_once = MAX_AT_ONCE
    while at_once > 1 and at_once * num_registers > MAX_REGISTERS_AT_ONCE:
        at_once //= 2
    return at_once


def for_columns(
    builder: Any, write: Callable[[AddressOf], None], num_registers: int, columns: Any,
    ancestors: Any, stride: Any,
) -> None:  # fmt: skip
    """Emit the code of `write` twice: for columns of the first row, and of any row."""

    def of_first_row(column: Any) -> Any:
        floats = builder.mul(column, number(num_registers * LANES))
        return builder.add(columns, builder.mul(floats, number(FLOAT_BYTES)))

    def of_its_row(column: Any) -> Any:
        row = builder.load(pointer(builder, ancestors, column, INT, INT_BYTES))
        floats = builder.mul(builder.sext(row, LONG), stride)
        return builder.add(of_first_row(column), builder.mul(floats, number(FLOAT_BYTES)))

    with builder.if_else(builder.icmp_signed("!=", ancestors, number(0))) as (then, otherwise):
        with then:
            write(of_its_row)
        with otherwise:
            write(of_first_row)


def prefetch_ahead(
    builder: Any, num_registers: int, columns: Any, at: Any, num_columns: int, length: Any,
    following: Any,
) -> None:  # fmt: skip
    """Prefetch the columns that are AHEAD of those at `at` into the second-level cache.

    The processor's own prefetcher stops at the end of every head.
    """
    ahead = builder.add(at, number(AHEAD))
    beyond = builder.sub(ahead, length)
    is_beyond = builder.icmp_signed(">=", beyond, number(0))
    column = builder.select(is_beyond, beyond, ahead)
    floats = builder.mul(column, number(num_registers * LANES))
    base = builder.select(is_beyond, following, columns)
    for register in range(num_columns * num_registers):
        place = builder.add(floats, number(register * LANES))
        prefetch(builder, pointer(builder, base, place, BYTE))
