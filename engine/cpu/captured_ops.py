"""Captured ops: the torch operations of a step are captured once and replayed from then on.

A model's own code spends much of a step in Python, and two steps with equally many rows differ in
numbers only. So the operations that reach torch are captured and later called one after the other:
views are made once, and results are written to the same memory each time. They are the same
operations on the same shapes, and give the same bits.

Code that torch does not see must be called through `captured_call`.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from engine.cpu.op_buffers import (
    AllocatingCall,
    BufferPlan,
    CapturedCall,
    CapturedGraph,
    GraphBuffers,
    address_of,
    tensors_in,
)

try:
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:  # the second is private to torch; without it steps run as they are written

    class TorchDispatchMode:  # type: ignore[no-redef]  # a stand-in
        def __init__(self) -> None:
            raise NotCapturable("this torch does not show its operations")

    TorchFunctionMode = TorchDispatchMode  # type: ignore[misc, assignment]  # never made

# Operations that allocate memory and compute nothing.
ALLOCATIONS = frozenset(
    {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty",
     "aten::new_empty_strided"}
)  # fmt: skip

# Functions that read values, or their address, without an operation.
VALUE_READS = frozenset({"tolist", "numpy", "data_ptr", "__array__", "__dlpack__"})

DETACH = "aten::detach_"  # changes no value; comes with `torch.tensor`
DROPOUT = "aten::dropout"
INDEX = frozenset({"aten::index", "aten::_unsafe_index"})

_thread = threading.local()


class NotCapturable(Exception):
    """The step depends on values, or keeps a result, and cannot be replayed."""


def captured_call(call: Callable[..., None], *arguments: Any) -> None:
    """Call a function that torch does not see, now and in every replay.

    It must write its results into tensors among its arguments, and change no others.
    """
    capture: Capture | None = getattr(_thread, "capture", None)
    if capture is None:
        call(*arguments)
        return
    # It is replayed as a whole, so that nothing inside it is captured or refused.
    _thread.capture = None
    try:
        call(*arguments)
    finally:
        _thread.capture = capture
    capture.calls.append(CapturedCall(call, arguments))


class OpCapturer:
    """Captures steps, as graphs that share memory.

    No two graphs run at once, and the result of a step is used before the next one.
    """

    def __init__(self) -> None:
        self.pool = GraphBuffers()

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], Tensor]]:
        """Run a step. Returns its result and a graph that runs it again. Raises NotCapturable."""
        _thread.capture = capture = Capture()
        try:
            with capture, RefuseValueReads():
                result = step()
        finally:
            _thread.capture = None
        plan = BufferPlan(capture.calls, capture.born, result, self.pool)
        graph = CapturedGraph(capture.calls, result, plan)
        results, expected = capture.results(), result.clone()
        del capture, result
        if are_alive(results):
            # A later step would read what this one computed.
            raise NotCapturable("it keeps what it computes")
        self.pool.poison()
        repeated = graph()
        if not torch.equal(expected, repeated):
            raise NotCapturable("torch does not see all of it")
        return repeated, graph


class Capture(TorchDispatchMode):
    """Records the operations of one step in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[CapturedCall] = []
        # By the address of a storage that the step allocates: the index of the call that does.
        # Its tensors live on in `allocated`, so that no other storage gets the address.
        self.born: dict[int, int] = {}
        self.allocated: list[Tensor] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if getattr(_thread, "capture", None) is not self:
            return function(*args, **named)
        if function._schema.name == DROPOUT and args[2:] == (False,):
            return args[0]  # decomposed, it would copy
        if function._can_decompose():
            # It is captured as the operations that it is made of.
            with self:
                parts = function.decompose(*args, **named)
            if parts is not NotImplemented:
                return parts
        if function._schema.name == DETACH:
            return function(*args, **named)
        refuse_unrepeatable(function, args)
        for each in written_by(function, args, named):
            if address_of(each) not in self.born and each.numel() > 0:
                raise NotCapturable(f"{function} changes a tensor that outlives the step")
        known = {address_of(each) for each in tensors_in((args, named))}
        result = function(*args, **named)
        made = tuple(tensors_in(result))
        self.allocated += made
        if function._schema.is_mutable:
            # It must neither return other tensors nor replace the storage of its arguments.
            if known != known.union(map(address_of, tensors_in((args, named, result)))):
                raise NotCapturable(f"{function} returns other tensors, or resizes one")
            self.calls.append(CapturedCall(function, args, named))
            return result
        if any(each.is_mkldnn for each in made):
            raise NotCapturable(f"{function} returns a tensor without storage")
        fresh = [each for each in made if each.numel() and address_of(each) not in known]
        if not fresh:
            return result  # a view, or nothing
        if len(fresh) != sum(each.numel() > 0 for each in made):
            raise NotCapturable(f"{function} returns old and new tensors")
        for each in fresh:
            self.born.setdefault(address_of(each), len(self.calls))
        if function._schema.name not in ALLOCATIONS:
            self.calls.append(call_into(function, args, named, made))
        return result

    def results(self) -> list[weakref.ref[Tensor]]:
        """Return the tensors that the step allocated."""
        return [weakref.ref(each) for each in self.allocated if address_of(each) in self.born]


class RefuseValueReads(TorchFunctionMode):
    """Raises NotCapturable where Python reads a value, which a replay would not read again."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in VALUE_READS and getattr(_thread, "capture", None) is not None:
            raise NotCapturable(f"{name} reads values")
        return function(*args, **(kwargs or {}))


def are_alive(results: list[weakref.ref[Tensor]]) -> bool:
    """Return whether any of the tensors is still referenced."""
    if all(each() is None for each in results):
        return False
    gc.collect()  # they may only hold each other
    return any(each() is not None for each in results)


def refuse_unrepeatable(function: Any, args: Any) -> None:
    """Raise NotCapturable for an operation whose result or shape depends on values."""
    if torch.Tag.data_dependent_output in function.tags:
        raise NotCapturable(f"{function} reads a value")
    if function._schema.name in INDEX:
        if any(each.dtype in (torch.bool, torch.uint8) for each in tensors_in(args[1])):
            raise NotCapturable(f"{function} returns as many values as a mask selects")
    elif torch.Tag.dynamic_output_shape in function.tags:
        raise NotCapturable(f"{function} returns a shape that depends on values")
    if torch.Tag.inplace_view in function.tags:
        raise NotCapturable(f"{function} changes a tensor's shape")
    if torch.Tag.nondeterministic_seeded in function.tags:
        raise NotCapturable(f"{function} draws random numbers")


def written_by(function: Any, args: Any, named: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the arguments that an operation writes to."""
    for at, each in enumerate(function._schema.arguments):
        if each.alias_info is not None and each.alias_info.is_write:
            yield from tensors_in(args[at] if at < len(args) else named.get(each.name))


def call_into(
    function: Any, args: Any, named: dict[str, Any], made: tuple[Tensor, ...]
) -> CapturedCall:
    """Return a call that writes its results to `made`, if the operation has an out= overload."""
    overload = overload_with_out(function)
    if overload is None:
        return AllocatingCall(function, args, named, made)
    variant, names = overload
    return CapturedCall(variant, args, named | dict(zip(names, made, strict=True)))


_overloads: dict[Any, tuple[Any, tuple[str, ...]] | None] = {}


def overload_with_out(function: Any) -> tuple[Any, tuple[str, ...]] | None:
    """Return the out= overload of an operation, and the names of the arguments to write to."""
    if function not in _overloads:
        _overloads[function] = _overload_with_out(function)
    return _overloads[function]


def _overload_with_out(function: Any) -> tuple[Any, tuple[str, ...]] | None:
    wanted = [(each.name, str(each.type)) for each in function._schema.arguments]
    for name in function.overloadpacket.overloads():
        overload = getattr(function.overloadpacket, name)
        arguments = overload._schema.arguments
        outs = tuple(each.name for each in arguments if each.is_out and str(each.type) == "Tensor")
        others = [(each.name, str(each.type)) for each in arguments if not each.is_out]
        if outs and others == wanted and len(outs) == len(function._schema.returns):
            return overload, outs
    return None
