"""Helpers for functions that are written in LLVM IR, instruction by instruction.

numba compiles most Python loops well. Where it keeps in memory what belongs in registers, or does
not vectorize, a `builder` emits the instructions instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llvmlite import binding, ir

from engine.cpu.thread_pool import FLOAT_BYTES

LANES = 16 if binding.get_host_cpu_features().get("avx512f") else 8  # floats in a register

LONG, FLOAT, BYTE, INT = ir.IntType(64), ir.FloatType(), ir.IntType(8), ir.IntType(32)
VECTOR = ir.VectorType(FLOAT, LANES)
FIRST_LANE = ir.Constant(INT, 0)
IN_ALL_LANES = ir.Constant(ir.VectorType(INT, LANES), [0] * LANES)
UNDEFINED, ZEROS = ir.Constant(VECTOR, ir.Undefined), ir.Constant(VECTOR, None)


def number(value: int) -> Any:
    """Return an int64 constant."""
    return ir.Constant(LONG, value)


def pointer(builder: Any, base: Any, at: Any, kind: Any, size: int = FLOAT_BYTES) -> Any:
    """Return a pointer to `at` times `size` bytes after the address `base`."""
    address = builder.add(base, builder.mul(at, number(size)))
    return builder.inttoptr(address, kind.as_pointer())


def load(builder: Any, base: Any, at: Any) -> Any:
    """Load the vector that starts at float `at`. base: an address"""
    return builder.load(pointer(builder, base, at, VECTOR), align=FLOAT_BYTES)


def store(builder: Any, vector: Any, base: Any, at: Any) -> None:
    """Store a vector of any width at float `at`. base: an address"""
    builder.store(vector, pointer(builder, base, at, vector.type), align=FLOAT_BYTES)


def spread(builder: Any, number: Any) -> Any:
    """Return a vector with the number in all lanes."""
    vector = builder.insert_element(UNDEFINED, number, FIRST_LANE)
    return builder.shuffle_vector(vector, UNDEFINED, IN_ALL_LANES)


def plus_product(builder: Any, total: Any, one: Any, other: Any) -> Any:
    """Return total + one * other with a single rounding."""
    product = builder.fmul(one, other, flags=("contract",))
    return builder.fadd(product, total, flags=("contract",))


def shuffled(builder: Any, one: Any, other: Any, lanes: list[int]) -> Any:
    """Return a vector of chosen lanes. lanes: numbers of `one`, or LANES and up for `other`"""
    mask = ir.Constant(ir.VectorType(INT, len(lanes)), lanes)
    return builder.shuffle_vector(one, other, mask)


def across(builder: Any, vectors: list[Any]) -> Any:
    """Return a vector with the sum of each vector. Their number must be a power of two."""
    width = num_sums = len(vectors)
    while width > 1:
        # In groups of `width` lanes each vector has sums of num_sums / width of them, in parts.
        half = width // 2
        first = [lane if lane % width < half else LANES + lane - half for lane in range(LANES)]
        second = [lane + half if lane % width < half else LANES + lane for lane in range(LANES)]
        middle = len(vectors) // 2
        vectors = [
            builder.fadd(
                shuffled(builder, one, other, first), shuffled(builder, one, other, second)
            )
            for one, other in zip(vectors[:middle], vectors[middle:], strict=True)
        ]
        width = half
    (sums,) = vectors
    width = LANES
    while width > num_sums:
        width //= 2
        lower, upper = (list(range(at, at + width)) for at in (0, width))
        sums = builder.fadd(
            shuffled(builder, sums, sums, lower), shuffled(builder, sums, sums, upper)
        )
    return sums


def by_case(builder: Any, selector: Any, cases: Mapping[int, Callable[[], None]]) -> None:
    """Emit a switch over `selector`, an int64: each case emits its own code, others do nothing."""
    after = builder.append_basic_block("after")
    switch = builder.switch(selector, after)
    for case, write in cases.items():
        block = builder.append_basic_block(f"case_{case}")
        switch.add_case(number(case), block)
        builder.position_at_end(block)
        write()
        builder.branch(after)
    builder.position_at_end(after)


def loop(
    builder: Any, begin: Any, end: Any, step: int,
    write: Callable[[Any, list[Any]], list[Any]], carried: list[Any] | None = None,
) -> list[Any]:  # fmt: skip
    """Emit a loop from `begin` to before `end`; returns the carried values after the last round.

    write:   emits one round; takes the index and the carried values, and returns new ones
    carried: the values before the first round
    """
    before = builder.block
    head, inside, after = (builder.append_basic_block(each) for each in ("head", "in", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    at, phis = builder.phi(LONG), [builder.phi(each.type) for each in carried or []]
    builder.cbranch(builder.icmp_signed("<", at, end), inside, after)
    builder.position_at_end(inside)
    returned = write(at, list(phis))
    following = builder.add(at, number(step))
    for phi, first, later in zip(
        (at, *phis), (begin, *(carried or [])), (following, *returned), strict=True
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(later, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return phis


def prefetch(builder: Any, address: Any) -> None:
    """Prefetch an address into the second-level cache for reading; any address is valid."""
    name = "llvm.prefetch.p0i8"
    kind = ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), INT, INT, INT])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    to_read, second_cache, data = (ir.Constant(INT, each) for each in (0, 2, 1))
    builder.call(function, [address, to_read, second_cache, data])
