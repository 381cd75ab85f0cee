"""Layers of a JoinedKVCache: the keys, values and states of all joined rows.

Keys and values grow by one column a step, written in place; a layer with a window drops columns
that the window has passed. A recurrent layer has a state of fixed size, which each step replaces.
The previous state is kept until the step is counted, since a step may fail and be run again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

SPARE_COLUMNS = 64  # so that appending seldom copies all keys

KeysValues = tuple[Tensor, Tensor]
"""Of a layer: (rows, heads, tokens, head size) each; the sizes of both may differ."""
States = dict[tuple[str, int], Tensor]
"""Of a recurrent layer, by kind and number: (rows, ...) each, of one size for any length."""

KNOWN_LAYERS = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    DummyLayer,
)


class UnknownCache(Exception):
    """A model keeps a state between steps that cannot be joined; the message says which."""


@dataclass(frozen=True, slots=True)
class LayerContent:
    """The content of a layer for one sequence: for one row, or for each of its rows."""

    keys_values: KeysValues | None = None  # the newest tokens, if there is a window
    states: States = field(default_factory=dict)
    window: int | None = None  # tokens that a token attends to, itself included

    def tensors(self) -> tuple[Tensor, ...]:
        return (*(self.keys_values or ()), *self.states.values())

    def of_row(self, row: int, num_tokens: int) -> LayerContent:
        """The content of one of many rows, whose tokens are the last `num_tokens` columns."""
        rows, both = slice(row, row + 1), self.keys_values
        if both is not None:
            keys, values = (each[rows, :, max(each.shape[2] - num_tokens, 0) :] for each in both)
            both = (keys, values)
        states = {name: each[rows] for name, each in self.states.items()}
        return LayerContent(both, states, self.window)

    def clone(self) -> LayerContent:
        both = self.keys_values
        return LayerContent(
            None if both is None else (both[0].clone(), both[1].clone()),
            {name: each.clone() for name, each in self.states.items()},
            self.window,
        )


class JoinedLayer(Protocol):
    """A layer of joined rows. Its owner counts the columns, which are the same for all layers."""

    def resize(self, num_columns: int) -> None:
        """Set the number of counted columns; a column that an uncounted step wrote is dropped."""

    def content(self, rows: slice, columns: slice) -> LayerContent:
        """Views of the content of these rows, whose tokens fill these columns.

        The last column is that of the newest counted token.
        """


class EmptyLayer(DummyLayer):
    """A layer without keys, values or states."""

    def resize(self, num_columns: int) -> None:
        pass

    def content(self, rows: slice, columns: slice) -> LayerContent:
        return LayerContent()


class SpareLayer(DynamicLayer):
    """A layer of keys and values with spare columns, so that it appends in place."""

    def __init__(
        self, keys: Tensor, values: Tensor, num_columns: int, window: int | None = None
    ) -> None:
        """keys, values: of the last of `num_columns` columns, at least those in the window"""
        super().__init__()
        self.hold(keys, values, num_columns, window)

    def hold(self, keys: Tensor, values: Tensor, num_columns: int, window: int | None) -> None:
        self.dtype, self.device = keys.dtype, keys.device
        self.window = window
        self.is_sliding = window is not None
        self.buffers = (with_spare_columns(keys), with_spare_columns(values))
        self.offset = num_columns - keys.shape[2]  # columns before those of the buffers
        self.is_initialized = True
        self.resize(num_columns)

    def resize(self, num_columns: int) -> None:
        self.num_columns = num_columns
        columns = slice(self.first_seen(num_columns) - self.offset, num_columns - self.offset)
        self.keys, self.values = (each[:, :, columns] for each in self.buffers)

    def first_seen(self, num_columns: int) -> int:
        """The first column that the token after `num_columns` attends to."""
        if self.window is None:
            return self.offset
        return max(num_columns - self.window + 1, self.offset)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> KeysValues:
        first, begin = self.first_seen(self.num_columns), self.num_columns
        end = begin + key_states.shape[2]
        if end - self.offset > self.buffers[0].shape[2]:
            kept = slice(first - self.offset, begin - self.offset)
            keys, values = self.buffers
            self.buffers = (
                with_spare_columns(keys[:, :, kept]),
                with_spare_columns(values[:, :, kept]),
            )
            self.offset = first
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, begin - self.offset : end - self.offset] = states
        self.num_columns = end
        seen = slice(first - self.offset, end - self.offset)
        self.keys, self.values = (each[:, :, seen] for each in self.buffers)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.num_columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        first = self.first_seen(self.num_columns)
        return self.num_columns - first + query_length, first

    def content(self, rows: slice, columns: slice) -> LayerContent:
        begin = max(columns.start, self.first_seen(columns.stop))
        tokens = slice(begin - self.offset, columns.stop - self.offset)
        keys, values = (each[rows, :, tokens] for each in self.buffers)
        return LayerContent((keys, values), window=self.window)


class StateLayer(LinearAttentionLayer):
    """A recurrent layer. A model may write its states in place or pass new ones."""

    is_compileable = False  # or `transformers` would build masks for a compiled step
    device: Any
    dtype: Any

    def __init__(self, states: States, num_columns: int) -> None:
        """states: (rows, ...) each, after `num_columns` columns"""
        super().__init__(number_of_states=1 + max(number for _, number in states))
        self.hold_states(states, num_columns)

    def hold_states(self, states: States, num_columns: int) -> None:
        self.counted, self.num_counted = states, num_columns
        self.begun = states
        for (kind, number), each in states.items():
            getattr(self, f"is_{kind}_states_initialized")[number] = True
            self.device, self.dtype = each.device, each.dtype
            if kind == "conv":
                self.conv_kernel_size[number] = each.shape[-1]
        self.has_previous_state = dict.fromkeys(self.has_previous_state, True)
        self.resize(num_columns)

    def resize(self, num_columns: int) -> None:
        self.settle(num_columns)
        for (kind, number), each in self.counted.items():
            getattr(self, f"{kind}_states")[number] = each.clone()

    def settle(self, num_columns: int) -> None:
        """Make the last step's states the current ones, if its column is counted."""
        if num_columns > self.num_counted:
            self.num_counted = num_columns
            self.counted = {
                (kind, number): getattr(self, f"{kind}_states")[number]
                for kind, number in self.counted
            }

    def update_recurrent_state(
        self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        """Store the new state, (rows, ...), without a copy; the previous one is kept elsewhere."""
        before = self.recurrent_states[state_idx]
        assert before is not None
        after = recurrent_states.to(before.dtype)
        self.recurrent_states[state_idx] = after
        return after

    def content(self, rows: slice, columns: slice) -> LayerContent:
        self.settle(columns.stop)
        return LayerContent(states={name: each[rows] for name, each in self.counted.items()})


class HybridLayer(StateLayer, SpareLayer):  # type: ignore[override]  # as of transformers
    """A recurrent layer that also attends."""

    def __init__(
        self, keys: Tensor, values: Tensor, states: States, num_columns: int, window: int | None
    ) -> None:
        DynamicLayer.__init__(self)
        LinearAttentionLayer.__init__(
            self, number_of_states=1 + max(number for _, number in states)
        )
        self.hold_states(states, num_columns)
        SpareLayer.hold(self, keys, values, num_columns, window)

    def resize(self, num_columns: int) -> None:
        StateLayer.resize(self, num_columns)
        if self.is_initialized:
            SpareLayer.resize(self, num_columns)

    def content(self, rows: slice, columns: slice) -> LayerContent:
        keys = SpareLayer.content(self, rows, columns)
        states = StateLayer.content(self, rows, columns)
        return LayerContent(keys.keys_values, states.states, self.window)


def with_spare_columns(tensor: Tensor) -> Tensor:
    return pad(tensor, (0, 0, 0, SPARE_COLUMNS))


def layer_of(
    parts: list[LayerContent],
    num_rows: list[int],
    lengths: list[int],
    filling: float,
) -> JoinedLayer:
    """Return the layer that joins the rows of several sequences.

    parts:    the layer's content for each sequence
    num_rows: of each sequence
    lengths:  of each sequence, in tokens; the longest has no padding before it
    filling:  the value where a row has no token
    """
    num_columns, window = max(lengths), parts[0].window
    states: States = {
        name: torch.cat(
            [expanded(each.states[name], rows) for each, rows in zip(parts, num_rows, strict=True)]
        )
        for name in parts[0].states
    }
    if parts[0].keys_values is None:
        return StateLayer(states, num_columns) if states else EmptyLayer()
    both = [each.keys_values for each in parts if each.keys_values is not None]
    num_kept = num_columns if window is None else min(num_columns, window - 1)
    keys, values = (
        join_columns(
            [each[at][:, :, -num_kept:] if num_kept else each[at][:, :, :0] for each in both],
            num_rows,
            [num_kept - min(each, num_kept) for each in lengths],
            filling,
        )
        for at in (0, 1)
    )
    if states:
        return HybridLayer(keys, values, states, num_columns, window)
    return SpareLayer(keys, values, num_columns, window)


def join_columns(
    parts: list[Tensor], num_rows: list[int], num_pads: list[int], filling: float
) -> Tensor:
    """Join the columns of several sequences: (rows, heads, columns, size).

    parts:    (1 or rows, heads, tokens, size) of each sequence
    num_rows: of each sequence
    num_pads: padding columns before the tokens of each; negative: after them
    """
    padded = [
        expanded(pad(part, (0, 0, max(num, 0), max(-num, 0)), value=filling), rows)
        for part, rows, num in zip(parts, num_rows, num_pads, strict=True)
    ]
    # One sequence with a long document is not copied for each of its rows.
    return padded[0] if len(padded) == 1 else torch.cat(padded)


def expanded(tensor: Tensor, num_rows: int) -> Tensor:
    """Expand a sequence's single stored row to `num_rows` rows, if it is still single."""
    return tensor.expand(num_rows, *tensor.shape[1:])


def contents_of(past: Any, num_rows: int = 1) -> list[LayerContent]:
    """Read the content that a model's cache has for so many prompts. Raises UnknownCache."""
    if type(past) is not DynamicCache:
        raise UnknownCache(f"it keeps a {type(past).__name__} between steps")
    contents = [content_of(each) for each in past.layers]
    if not any(each.tensors() for each in contents):
        raise UnknownCache("it keeps nothing between steps in a cache that is known")
    if any(each.shape[0] != num_rows for content in contents for each in content.tensors()):
        raise UnknownCache("what it keeps between steps is not kept by row")
    return contents


def content_of(layer: Any) -> LayerContent:
    """Read the content of one layer of a model's cache. Raises UnknownCache."""
    if type(layer) not in KNOWN_LAYERS:
        raise UnknownCache(f"it keeps a {type(layer).__name__} between steps")
    states = {
        (kind, number): state
        for kind in ("conv", "recurrent")
        for number, state in getattr(layer, f"{kind}_states", {}).items()
        if state is not None
    }
    if layer.__dict__.get("keys") is None or layer.values is None:
        return LayerContent(states=states)
    return LayerContent((layer.keys, layer.values), states, getattr(layer, "sliding_window", None))
