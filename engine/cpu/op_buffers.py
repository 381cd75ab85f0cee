"""CapturedGraph: calls that are made again and again, in memory of their own.

What is a view is made once, and what is computed is written where it was before. Tensors
that are not needed at once share memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

MIN_BUFFER_BYTES = 1024
NAN_BYTE = 255  # a float whose bytes are all this is NaN


@dataclass(slots=True)
class Call:
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> Iterator[Tensor]:
        yield from tensors_in((self.arguments, self.named))

    def moved(self, move: Callable[[Tensor], Tensor]) -> Callable[[], Any]:
        """The same with other tensors."""
        arguments, named = with_tensors((self.arguments, self.named), move)
        return partial(self.function, *arguments, **named)


@dataclass(slots=True)
class Making(Call):
    """A call that cannot be told where its results go. Who reads them is told where they are."""

    results: tuple[Tensor, ...] = ()

    def tensors(self) -> Iterator[Tensor]:
        yield from tensors_in((self.arguments, self.named, self.results))


class Made:
    """Tensors of one result of a Making, among the calls of a tape."""

    def __init__(self) -> None:
        self.tensors: list[tuple[Tensor, tuple[int, torch.Size, tuple[int, ...]]]] = []

    def like(self, tensor: Tensor) -> Tensor:
        """One more that lies in the result as this one does."""
        mine = torch.empty(0, dtype=tensor.dtype)
        self.tensors.append((mine, (int(tensor.storage_offset()), tensor.size(), tensor.stride())))
        return mine

    def lie_in(self, result: Tensor) -> None:
        storage = result.untyped_storage()
        for tensor, (offset, size, stride) in self.tensors:
            tensor.set_(storage, offset, size, stride)

    def let_go(self) -> None:
        for tensor, _ in self.tensors:
            tensor.set_()  # type: ignore[call-overload]  # the stubs lack it


class CapturedGraph:
    """Calls, with the tensors that they read and write."""

    def __init__(self, calls: list[Call], result: Tensor, memory: Memory) -> None:
        self.memory = memory
        self.calls: list[Callable[[], Any]] = []
        for call in calls:
            again = call.moved(memory.place)
            if isinstance(call, Making):
                made = [memory.made[address_of(each)] for each in call.results]
                again = partial(self.make, again, made)
            self.calls.append(again)
        self.result = memory.place(result)

    def __call__(self) -> Tensor:
        self.memory.pool.play(self)
        for call in self.calls:
            call()
        return self.result

    def make(self, function: Callable[[], Any], made: list[Made]) -> None:
        for each, result in zip(made, tensors_in(function()), strict=True):
            each.lie_in(result)

    def let_go(self) -> None:
        for each in self.memory.made.values():
            each.let_go()


class Memory:
    """Where each tensor goes that is made in a step: into a buffer of the pool, or where a
    Making says."""

    def __init__(self, calls: list[Call], born: dict[int, int], result: Tensor, pool: Pool) -> None:
        """born: by the address of what is made in the step: before which call"""
        self.pool = pool
        self.born = born
        self.made: dict[int, Made] = {}  # by address
        self.placed: dict[int, Tensor] = {}  # by the identity of what was made
        last_used, sizes = dict(born), dict[int, int]()
        for at, call in enumerate(calls):
            if isinstance(call, Making):
                self.made |= {address_of(each): Made() for each in call.results}
            for tensor in call.tensors():
                address = address_of(tensor)
                if address in born and address not in self.made:
                    last_used[address] = at
                    sizes[address] = tensor.untyped_storage().nbytes()
        last_used[address_of(result)] = len(calls)
        self.buffers = pool.lent(
            (born[address], last_used[address], address, size) for address, size in sizes.items()
        )

    def place(self, tensor: Tensor) -> Tensor:
        """What a tape has in the place of a tensor of the step; itself, if it is a weight, an
        input, or what is there from step to step."""
        address = address_of(tensor)
        if address not in self.born:
            return tensor
        if id(tensor) not in self.placed:
            if address in self.made:
                placed = self.made[address].like(tensor)
            else:
                placed = torch.empty(0, dtype=tensor.dtype)
                storage = self.buffers[address].untyped_storage()
                placed.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
            self.placed[id(tensor)] = placed
        return self.placed[id(tensor)]


class Pool:
    """Buffers for what is used at other times in a step; their sizes are powers of two, so
    that steps of other shapes use the same."""

    def __init__(self) -> None:
        self.buffers: dict[int, list[Tensor]] = defaultdict(list)  # by size in bytes
        self.playing: CapturedGraph | None = None  # it holds what it made until another is played

    def play(self, tape: CapturedGraph) -> None:
        if self.playing is not None and self.playing is not tape:
            self.playing.let_go()
        self.playing = tape

    def lent(self, needs: Iterator[tuple[int, int, int, int]]) -> dict[int, Tensor]:
        """needs: first call, last call, name, bytes; returns a buffer for each name, one for
        several whose calls are apart"""
        free = {size: list(each) for size, each in self.buffers.items()}
        in_use: list[tuple[int, Tensor]] = []  # until which call
        lent: dict[int, Tensor] = {}
        for first, last, name, num_bytes in sorted(needs):
            ended = [each for each in in_use if each[0] < first]
            in_use = [each for each in in_use if each[0] >= first]
            for _, buffer in ended:
                free[buffer.numel()].append(buffer)
            size = max(1 << (num_bytes - 1).bit_length(), MIN_BUFFER_BYTES)
            if not free.setdefault(size, []):
                free[size].append(torch.empty(size, dtype=torch.uint8))
                self.buffers[size].append(free[size][-1])
            lent[name] = free[size].pop()
            in_use.append((last, lent[name]))
        return lent

    def poison(self) -> None:
        """So that who reads what was not written is found out."""
        for buffers in self.buffers.values():
            for each in buffers:
                each.fill_(NAN_BYTE)


def address_of(tensor: Tensor) -> int:
    """Of what it shares with its views; 0 for packed weights, which have no storage."""
    return 0 if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same, with other tensors in it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(with_tensors(each, change) for each in value)
    if isinstance(value, dict):
        return {name: with_tensors(each, change) for name, each in value.items()}
    return value
