"""CapturedOps: what torch does in a step, written down once, to be done again from a tape.

A model's own code spends as much time in Python as a small model does in its products, and
between two steps of as many rows nothing differs but numbers. So the operations that reach
torch are written down, and from then on called one after the other: what is a view is made
once, and what is computed is written where it was before. They are the same operations on
the same shapes, and so give the same bits.

What torch does not see must be called with `captured_call`.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from engine.cpu.op_buffers import Call, CapturedGraph, Making, Memory, Pool, address_of, tensors_in

try:
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:  # the second is torch's own; without it steps are run as written

    class TorchDispatchMode:  # type: ignore[no-redef]  # its stand-in
        def __init__(self) -> None:
            raise NotCapturable("this torch shows nobody its operations")

    TorchFunctionMode = TorchDispatchMode  # type: ignore[misc, assignment]  # never made

# What they make is memory; what is in it comes later.
EMPTY = frozenset(
    {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty",
     "aten::new_empty_strided"}
)  # fmt: skip

# These tell numbers, or where they are, without an operation.
TELLS_NUMBERS = frozenset({"tolist", "numpy", "data_ptr", "__array__", "__dlpack__"})

DETACH = "aten::detach_"  # changes no number; comes with `torch.tensor`
DROPOUT = "aten::dropout"
INDEX = frozenset({"aten::index", "aten::_unsafe_index"})

_here = threading.local()


class NotCapturable(Exception):
    """A step that is another one each time."""


def captured_call(call: Callable[..., None], *arguments: Any) -> None:
    """Call it, and have it called whenever the tape is played that is being recorded.

    It writes to tensors among its arguments; the numbers among them stay as they are.
    """
    recording: CapturedOps | None = getattr(_here, "recording", None)
    if recording is None:
        call(*arguments)
        return
    # Called again as a whole, so that nothing in it is written down or refused.
    _here.recording = None
    try:
        call(*arguments)
    finally:
        _here.recording = recording
    recording.calls.append(Call(call, arguments))


class OpCapturer:
    """Its tapes share memory: no two are played at once, and what a step leaves is used up
    before the next."""

    def __init__(self) -> None:
        self.pool = Pool()

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], Tensor]]:
        """What the step returns, and what does it again. Raises NotCapturable."""
        _here.recording = recording = CapturedOps()
        try:
            with recording, RefuseValueReads():
                result = step()
        finally:
            _here.recording = None
        memory = Memory(recording.calls, recording.born, result, self.pool)
        tape = CapturedGraph(recording.calls, result, memory)
        results, expected = recording.results(), result.clone()
        del recording, result
        if are_left(results):
            # The next step would find there what was in this one.
            raise NotCapturable("it keeps what it computes")
        self.pool.poison()
        repeated = tape()
        if not torch.equal(expected, repeated):
            raise NotCapturable("something in it is unseen")
        return repeated, tape


class CapturedOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        # By the address of a storage that is made in the step: before which call. Its tensors
        # are kept, so that no other has the address.
        self.born: dict[int, int] = {}
        self.kept: list[Tensor] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if getattr(_here, "recording", None) is not self:
            return function(*args, **named)
        if function._schema.name == DROPOUT and args[2:] == (False,):
            return args[0]  # decomposed, it is copied
        if function._can_decompose():
            # Seen as the operations that it is made of.
            with self:
                parts = function.decompose(*args, **named)
            if parts is not NotImplemented:
                return parts
        if function._schema.name == DETACH:
            return function(*args, **named)
        refuse_unrepeatable(function, args)
        for each in written_by(function, args, named):
            if address_of(each) not in self.born and each.numel() > 0:
                raise NotCapturable(f"{function} changes what is there from step to step")
        known = {address_of(each) for each in tensors_in((args, named))}
        result = function(*args, **named)
        made = tuple(tensors_in(result))
        self.kept += made
        if function._schema.is_mutable:
            # Neither does it make anything else, nor are there others in their place.
            if known != known.union(map(address_of, tensors_in((args, named, result)))):
                raise NotCapturable(f"{function} makes more room, or something else")
            self.calls.append(Call(function, args, named))
            return result
        if any(each.is_mkldnn for each in made):
            raise NotCapturable(f"{function} makes what has no storage")
        fresh = [each for each in made if each.numel() and address_of(each) not in known]
        if not fresh:
            return result  # a view, or nothing
        if len(fresh) != sum(each.numel() > 0 for each in made):
            raise NotCapturable(f"{function} makes a part of what it returns")
        for each in fresh:
            self.born.setdefault(address_of(each), len(self.calls))
        if function._schema.name not in EMPTY:
            self.calls.append(call_into(function, args, named, made))
        return result

    def results(self) -> list[weakref.ref[Tensor]]:
        """Of all calls, without what shows something else."""
        return [weakref.ref(each) for each in self.kept if address_of(each) in self.born]


class RefuseValueReads(TorchFunctionMode):
    """What a step does by the numbers of its inputs would be done by those of the first."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in TELLS_NUMBERS and getattr(_here, "recording", None) is not None:
            raise NotCapturable(f"{name} tells numbers")
        return function(*args, **(kwargs or {}))


def are_left(results: list[weakref.ref[Tensor]]) -> bool:
    """Whether somebody holds one."""
    if all(each() is None for each in results):
        return False
    gc.collect()  # perhaps only each other
    return any(each() is not None for each in results)


def refuse_unrepeatable(function: Any, args: Any) -> None:
    if torch.Tag.data_dependent_output in function.tags:
        raise NotCapturable(f"{function} asks for a number")
    if function._schema.name in INDEX:
        if any(each.dtype in (torch.bool, torch.uint8) for each in tensors_in(args[1])):
            raise NotCapturable(f"{function} returns as much as a mask has")
    elif torch.Tag.dynamic_output_shape in function.tags:
        raise NotCapturable(f"{function} returns more or less by the numbers")
    if torch.Tag.inplace_view in function.tags:
        raise NotCapturable(f"{function} changes a tensor's shape")
    if torch.Tag.nondeterministic_seeded in function.tags:
        raise NotCapturable(f"{function} draws")


def written_by(function: Any, args: Any, named: dict[str, Any]) -> Iterator[Tensor]:
    """Those of its arguments that it changes."""
    for at, each in enumerate(function._schema.arguments):
        if each.alias_info is not None and each.alias_info.is_write:
            yield from tensors_in(args[at] if at < len(args) else named.get(each.name))


def call_into(function: Any, args: Any, named: dict[str, Any], made: tuple[Tensor, ...]) -> Call:
    """A call that writes to `made`."""
    into = variant_with_out(function)
    if into is None:
        return Making(function, args, named, made)
    variant, names = into
    return Call(variant, args, named | dict(zip(names, made, strict=True)))


_variants: dict[Any, tuple[Any, tuple[str, ...]] | None] = {}


def variant_with_out(function: Any) -> tuple[Any, tuple[str, ...]] | None:
    """The overload that is told where the results go, and the names of those arguments."""
    if function not in _variants:
        _variants[function] = _variant_with_out(function)
    return _variants[function]


def _variant_with_out(function: Any) -> tuple[Any, tuple[str, ...]] | None:
    wanted = [(each.name, str(each.type)) for each in function._schema.arguments]
    for name in function.overloadpacket.overloads():
        overload = getattr(function.overloadpacket, name)
        arguments = overload._schema.arguments
        outs = tuple(each.name for each in arguments if each.is_out and str(each.type) == "Tensor")
        others = [(each.name, str(each.type)) for each in arguments if not each.is_out]
        if outs and others == wanted and len(outs) == len(function._schema.returns):
            return overload, outs
    return None
