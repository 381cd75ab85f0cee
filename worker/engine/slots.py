"""Slot: the keys and values of one sequence, kept from step to step; SlotCache: those of a step.

A slot grows with its sequence, in buckets, so that a model with a long context costs what
its sequences need and not what they might. What the model's own code carries from the cache
to the attention function are Parts: one tensor for each slot, none of them padded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

BUCKET_TOKENS = 64


class Slot:
    """Its rows share one length. Always: columns before `length` are written, later ones
    are never read; every layer has the same capacity."""

    def __init__(self, num_rows: int, poisoned: bool = False) -> None:
        """poisoned: columns that nobody wrote are NaN, so that a test sees them read."""
        self.num_rows = num_rows
        self.poisoned = poisoned
        self.length = 0
        self.keys: list[Tensor] = []  # by layer: (rows, heads, capacity, head size)
        self.values: list[Tensor] = []
        self.cross_keys: list[Tensor] = []  # by layer: (1, heads, prompt, head size)
        self.cross_values: list[Tensor] = []

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2] if self.keys else 0

    def fill(self, keys: Tensor, values: Tensor) -> None:
        """One layer's: (1, heads, columns, head size), the same for every row."""
        self.length = keys.shape[2]
        capacity = rounded_up(self.length + 1)
        for kept, given in ((self.keys, keys), (self.values, values)):
            room = self._empty(given, capacity)
            room[:, :, : self.length] = given
            kept.append(room)

    def fill_cross(self, keys: Tensor, values: Tensor) -> None:
        """One layer's: (1, heads, prompt, head size)."""
        # Copied: they are views of what was computed for all that joined together.
        self.cross_keys.append(keys.clone())
        self.cross_values.append(values.clone())

    def make_room(self) -> None:
        """For one more column."""
        if self.length < self.capacity:
            return
        capacity = rounded_up(self.length + 1)
        for kept in (self.keys, self.values):
            for layer, full in enumerate(kept):
                kept[layer] = self._empty(full, capacity)
                kept[layer][:, :, : self.length] = full

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was."""
        for kept in (self.keys, self.values):
            for each in kept:
                used = each[:, :, : self.length]
                used.copy_(used.index_select(0, rows))

    @torch.inference_mode()
    def clear(self) -> None:
        """Give the memory back."""
        if self.poisoned:
            for each in (*self.keys, *self.values, *self.cross_keys, *self.cross_values):
                each.fill_(torch.nan)
        self.keys, self.values, self.cross_keys, self.cross_values = [], [], [], []
        self.length = 0

    def _empty(self, like: Tensor, capacity: int) -> Tensor:
        shape = (self.num_rows, like.shape[1], capacity, like.shape[3])
        return like.new_full(shape, torch.nan) if self.poisoned else like.new_empty(shape)


def rounded_up(num_tokens: int) -> int:
    return -(-num_tokens // BUCKET_TOKENS) * BUCKET_TOKENS


class Parts:
    """Stands for the keys or the values of all rows of a step.

    The models hand it on untouched from their cache to the attention function; T5 asks
    for its shape.
    """

    __slots__ = ("are_cross", "biases", "num_rows", "of_slot", "shape")

    def __init__(
        self,
        slots: list[Slot],
        of_slot: list[Tensor],
        are_cross: bool = False,
        biases: list[Tensor] | None = None,
    ) -> None:
        """of_slot: (rows, heads, columns, head size); cross: (1, heads, columns, head size)
        biases:  (1, heads, 1, columns), added to the scores"""
        self.num_rows = [slot.num_rows for slot in slots]
        self.of_slot = of_slot
        self.are_cross = are_cross
        self.biases = biases
        first = of_slot[0]
        self.shape = (sum(self.num_rows), first.shape[1], 1, first.shape[3])


class SlotCache(Cache):
    """The slots of one step, in the order of its rows. Writes each row at its own end."""

    def __init__(self, num_layers: int, bias: Callable[[int], Tensor] | None = None) -> None:
        """bias: of a row with that many columns, for models whose positions are one."""
        layers: Any = [SlotLayer() for _ in range(num_layers)]
        super().__init__(layers=layers)
        self.bias = bias
        self.slots: list[Slot] = []
        self.biases: list[Tensor] | None = None

    def hold(self, slots: list[Slot]) -> None:
        for slot in slots:
            slot.make_room()
        self.slots = slots
        if self.bias is not None:
            self.biases = [self.bias(slot.length + 1) for slot in slots]

    def update(  # type: ignore[override]  # the models only hand on what they get
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Parts, Parts]:
        """key_states, value_states: (rows, heads, 1, head size)"""
        keys, values = [], []
        at = 0
        # Columns are written at `length` and only then counted, so that a step that fails
        # can be run again.
        for slot in self.slots:
            end, column = at + slot.num_rows, slot.length
            key, value = slot.keys[layer_idx], slot.values[layer_idx]
            key[:, :, column] = key_states[at:end, :, 0]
            value[:, :, column] = value_states[at:end, :, 0]
            keys.append(key[:, :, : column + 1])
            values.append(value[:, :, : column + 1])
            at = end
        return Parts(self.slots, keys, biases=self.biases), Parts(self.slots, values)

    # The models ask for one length of all rows. There is none; what they would do with it
    # (masks, positions) is done by row in `attention` and `positions`.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0

    @property
    def is_compileable(self) -> bool:
        return False


class CrossCache(Cache):
    """What the encoder left for the rows of one step."""

    def __init__(self, num_layers: int) -> None:
        self.slots: list[Slot] = []
        layers: Any = [CrossLayer(self, each) for each in range(num_layers)]
        super().__init__(layers=layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 1  # more than none: the encoder has been read

    @property
    def is_compileable(self) -> bool:
        return False


class SlotLayer:
    is_sliding = False
    is_compileable = False
    is_initialized = True


class CrossLayer(SlotLayer):
    def __init__(self, cache: CrossCache, index: int) -> None:
        self.cache = cache
        self.index = index

    @property
    def keys(self) -> Parts:
        slots = self.cache.slots
        return Parts(slots, [slot.cross_keys[self.index] for slot in slots], are_cross=True)

    @property
    def values(self) -> Parts:
        slots = self.cache.slots
        return Parts(slots, [slot.cross_values[self.index] for slot in slots], are_cross=True)
