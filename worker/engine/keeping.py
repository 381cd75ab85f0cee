"""Keeping: where a runner has the keys and values of its sequences.

In slots of their own, each read by itself, or in an arena, all read at once. The first is
for a CPU, which computes nothing that it need not; the second for a GPU, which had rather
compute too much than wait to be told. Both give the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor

from worker.engine.arena import Arena, ArenaSlot
from worker.engine.arena_attention import ArenaRowAttention
from worker.engine.graphs import Graphs, recorder_for
from worker.engine.row_attention import RowAttention, row_attention
from worker.engine.slots import KVShape, Slot
from worker.engine.static_step import StaticStep, StepInputs, StepShape


class Keeping(Protocol):
    shape: KVShape

    @property
    def attention(self) -> RowAttention:
        """To a row's own tokens."""

    @property
    def cross(self) -> RowAttention:
        """To what the encoder left."""

    def new_slot(self, num_rows: int) -> Slot: ...

    def static_step(self, forward: Callable[[StepInputs], Tensor]) -> StaticStep | None:
        """What runs the steps; None if any step will do."""

    def hold_inputs(self, inputs: StepInputs) -> None:
        """Of the next step, if that is a static one."""

    def keep_only(self, slots: Iterable[Slot]) -> None:
        """Whatever else was made is given back: the rest of a step that failed."""

    def check(self, slots: Iterable[Slot]) -> None:
        """Raise InvariantBroken if others hold something."""


class OwnKeeping:
    def __init__(self, shape: KVShape, poisoned: bool = False) -> None:
        """poisoned: memory that must not be read is NaN; for tests"""
        self.shape = shape
        self.attention = row_attention(shape, is_cross=False, poisoned=poisoned)
        self.cross = row_attention(shape, is_cross=True, poisoned=poisoned)

    def new_slot(self, num_rows: int) -> Slot:
        return self.attention.new_slot(num_rows)

    def static_step(self, forward: Callable[[StepInputs], Tensor]) -> None:
        return None

    def hold_inputs(self, inputs: StepInputs) -> None:
        raise AssertionError("slots of their own are told by themselves")

    def keep_only(self, slots: Iterable[Slot]) -> None:
        """Nothing to do: memory of one's own goes with its slot."""

    def check(self, slots: Iterable[Slot]) -> None:
        """Nothing is shared."""


class ArenaKeeping:
    def __init__(
        self, shape: KVShape, max_rows: int, max_tokens: int, poisoned: bool = False
    ) -> None:
        """poisoned: as above"""
        self.shape = shape
        self.arena = Arena(shape, max_rows, max_tokens, poisoned)
        self.attention = ArenaRowAttention(self.arena, is_cross=False)
        self.cross = ArenaRowAttention(self.arena, is_cross=True)

    def new_slot(self, num_rows: int) -> ArenaSlot:
        return self.arena.slot(num_rows)

    def static_step(self, forward: Callable[[StepInputs], Tensor]) -> StaticStep:
        graphs: Graphs[StepShape] = Graphs(recorder_for(self.shape.device))
        return StaticStep(self.arena, forward, graphs)

    def hold_inputs(self, inputs: StepInputs) -> None:
        self.attention.hold_inputs(inputs)
        if inputs.has_encoder:
            self.cross.hold_inputs(inputs)

    def keep_only(self, slots: Iterable[Any]) -> None:
        self.arena.keep_only(slots)

    def check(self, slots: Iterable[Any]) -> None:
        self.arena.check(slots)
