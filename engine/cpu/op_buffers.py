"""CapturedGraph: the calls of a captured step, with the buffers that they read and write.

Tensors that are not needed at the same time share a buffer.
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
class CapturedCall:
    """A torch operation, or a function of ours, with its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> Iterator[Tensor]:
        yield from tensors_in((self.arguments, self.named))

    def moved(self, move: Callable[[Tensor], Tensor]) -> Callable[[], Any]:
        """Return the call, bound to the tensors by which `move` replaces its own."""
        arguments, named = with_tensors((self.arguments, self.named), move)
        return partial(self.function, *arguments, **named)


@dataclass(slots=True)
class AllocatingCall(CapturedCall):
    """A call that allocates its results; the tensors of later calls become views of them."""

    results: tuple[Tensor, ...] = ()

    def tensors(self) -> Iterator[Tensor]:
        yield from tensors_in((self.arguments, self.named, self.results))


class AttachedTensors:
    """The tensors of a graph that are views of one result of an AllocatingCall."""

    def __init__(self) -> None:
        self.tensors: list[tuple[Tensor, tuple[int, torch.Size, tuple[int, ...]]]] = []

    def like(self, tensor: Tensor) -> Tensor:
        """Return a new tensor that will be a view of the result, with the layout of `tensor`."""
        mine = torch.empty(0, dtype=tensor.dtype)
        self.tensors.append((mine, (int(tensor.storage_offset()), tensor.size(), tensor.stride())))
        return mine

    def attach(self, result: Tensor) -> None:
        """Make all tensors views of a new result."""
        storage = result.untyped_storage()
        for tensor, (offset, size, stride) in self.tensors:
            tensor.set_(storage, offset, size, stride)

    def release(self) -> None:
        """Drop the result, so that its memory is freed."""
        for tensor, _ in self.tensors:
            tensor.set_()  # type: ignore[call-overload]  # the stubs lack it


class CapturedGraph:
    """Replays a step; its result is overwritten by the next replay of any graph of the pool."""

    def __init__(self, calls: list[CapturedCall], result: Tensor, plan: BufferPlan) -> None:
        self.plan = plan
        self.calls: list[Callable[[], Any]] = []
        for call in calls:
            again = call.moved(plan.place)
            if isinstance(call, AllocatingCall):
                made = [plan.made[address_of(each)] for each in call.results]
                again = partial(self.make, again, made)
            self.calls.append(again)
        self.result = plan.place(result)

    def __call__(self) -> Tensor:
        self.plan.pool.begin(self)
        for call in self.calls:
            call()
        return self.result

    def make(self, function: Callable[[], Any], made: list[AttachedTensors]) -> None:
        for each, result in zip(made, tensors_in(function()), strict=True):
            each.attach(result)

    def release(self) -> None:
        """Free the results that its allocating calls made."""
        for each in self.plan.made.values():
            each.release()


class BufferPlan:
    """Assigns each tensor of a step to a pooled buffer or to an AllocatingCall's result."""

    def __init__(
        self, calls: list[CapturedCall], born: dict[int, int], result: Tensor, pool: GraphBuffers
    ) -> None:
        """born: the index of the call that allocates each storage, by its address"""
        self.pool = pool
        self.born = born
        self.made: dict[int, AttachedTensors] = {}  # by address
        self.placed: dict[int, Tensor] = {}  # by the identity of the step's tensor
        last_used, sizes = dict(born), dict[int, int]()
        for at, call in enumerate(calls):
            if isinstance(call, AllocatingCall):
                self.made |= {address_of(each): AttachedTensors() for each in call.results}
            for tensor in call.tensors():
                address = address_of(tensor)
                if address in born and address not in self.made:
                    last_used[address] = at
                    sizes[address] = tensor.untyped_storage().nbytes()
        last_used[address_of(result)] = len(calls)
        self.buffers = pool.assign(
            (born[address], last_used[address], address, size) for address, size in sizes.items()
        )

    def place(self, tensor: Tensor) -> Tensor:
        """Return the graph's tensor for a tensor of the step.

        A tensor that outlives the step, such as a weight, is returned unchanged.
        """
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


class GraphBuffers:
    """Buffers that all graphs share.

    Their sizes are powers of two, so that steps of different shapes use the same ones.
    """

    def __init__(self) -> None:
        self.buffers: dict[int, list[Tensor]] = defaultdict(list)  # by size in bytes
        self.replayed: CapturedGraph | None = None  # holds its results until another is replayed

    def begin(self, graph: CapturedGraph) -> None:
        """Record which graph is replayed, and free what the previous one allocated."""
        if self.replayed is not None and self.replayed is not graph:
            self.replayed.release()
        self.replayed = graph

    def assign(self, needs: Iterator[tuple[int, int, int, int]]) -> dict[int, Tensor]:
        """Return a buffer for each need, by name; needs that do not overlap in time may share one.

        needs: the first and the last call that use it, a name, and the size in bytes
        """
        free = {size: list(each) for size, each in self.buffers.items()}
        in_use: list[tuple[int, Tensor]] = []  # until which call
        assigned: dict[int, Tensor] = {}
        for first, last, name, num_bytes in sorted(needs):
            ended = [each for each in in_use if each[0] < first]
            in_use = [each for each in in_use if each[0] >= first]
            for _, buffer in ended:
                free[buffer.numel()].append(buffer)
            size = max(1 << (num_bytes - 1).bit_length(), MIN_BUFFER_BYTES)
            if not free.setdefault(size, []):
                free[size].append(torch.empty(size, dtype=torch.uint8))
                self.buffers[size].append(free[size][-1])
            assigned[name] = free[size].pop()
            in_use.append((last, assigned[name]))
        return assigned

    def poison(self) -> None:
        """Fill all buffers with NaN, so that a read of unwritten memory shows."""
        for buffers in self.buffers.values():
            for each in buffers:
                each.fill_(NAN_BYTE)


def address_of(tensor: Tensor) -> int:
    """Return the address of a tensor's storage; 0 for packed weights, which have none."""
    return 0 if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a nested value with each tensor replaced by what `change` returns for it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(with_tensors(each, change) for each in value)
    if isinstance(value, dict):
        return {name: with_tensors(each, change) for name, each in value.items()}
    return value
