"""InflightSelfCache, InflightCrossCache: what the model's own code takes for its cache, by slots.

What it carries from there to the attention function is a CacheView: whose columns, and which
layer of them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache

from engine.attention.base import AttentionBackend, Spans
from engine.kv_cache.contiguous import KVShape, SequenceCache


class CacheView:
    """Stands for the keys or the values of all rows of a step.

    The models hand it on untouched; T5 asks for its shape.
    """

    __slots__ = ("attention", "layer", "new", "shape")

    def __init__(
        self, attention: AttentionBackend, layer: int, new: Tensor | None, shape: tuple[int, ...]
    ) -> None:
        """new: (rows, heads, 1, head size), what the step adds"""
        self.attention = attention
        self.layer = layer
        self.new = new
        self.shape = shape


class MixedCacheView:
    """Stands for the keys or the values of tokens of a step and of prompts after them."""

    __slots__ = ("attention", "layer", "num_stepping", "shape", "tokens")

    def __init__(
        self, attention: AttentionBackend, layer: int, tokens: Tensor, num_stepping: int
    ) -> None:
        """tokens: (1, heads, tokens, head size)"""
        self.attention = attention
        self.layer = layer
        self.tokens = tokens
        self.num_stepping = num_stepping
        self.shape = tuple(tokens.shape)


class InflightSelfCache(Cache):
    """Reads whole prompts into slots, or adds a column to each row of a step, or both."""

    def __init__(self, shape: KVShape, attention: AttentionBackend) -> None:
        layers: Any = [SlotLayer() for _ in range(shape.num_layers)]
        super().__init__(layers=layers)
        self.attention = attention
        self.is_reading = False
        self.num_stepping = 0  # tokens before the prompts that are read

    def hold(self, slots: list[SequenceCache]) -> None:
        """Those of the next step."""
        for slot in slots:
            slot.make_room()
        self.is_reading = False
        self.attention.hold(slots)

    def hold_prompts(self, slots: list[SequenceCache], spans: Spans, num_stepping: int = 0) -> None:
        """Empty ones, for prompts that are read one after the other in a single row; behind
        so many tokens of those that are held."""
        self.is_reading = True
        self.num_stepping = num_stepping
        if not num_stepping:
            self.attention.hold([])
        self.attention.hold_prompts(slots, spans)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """key_states, value_states: (rows, heads, 1, head size), or (1, heads, tokens, head size)
        of prompts"""
        if not self.is_reading:
            shape = tuple(key_states.shape)
            return (
                CacheView(self.attention, layer_idx, key_states, shape),
                CacheView(self.attention, layer_idx, value_states, shape),
            )
        num_stepping = self.num_stepping
        if not num_stepping:
            self.attention.fill(layer_idx, key_states, value_states)
            return key_states, value_states
        self.attention.fill(
            layer_idx, key_states[:, :, num_stepping:], value_states[:, :, num_stepping:]
        )
        return (
            MixedCacheView(self.attention, layer_idx, key_states, num_stepping),
            MixedCacheView(self.attention, layer_idx, value_states, num_stepping),
        )

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


class InflightCrossCache(Cache):
    """What the encoder left for the rows of one step."""

    def __init__(self, shape: KVShape, attention: AttentionBackend) -> None:
        layers: Any = [CrossLayer(self, each) for each in range(shape.num_layers)]
        super().__init__(layers=layers)
        self.attention = attention
        self.view_shape: tuple[int, ...] = (0, shape.num_heads, 1, shape.head_size)

    def hold(self, slots: list[SequenceCache]) -> None:
        self.attention.hold(slots)

    def shape_rows(self, num_rows: int) -> None:
        """Of the next step."""
        self.view_shape = (num_rows, *self.view_shape[1:])

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
    def __init__(self, cache: InflightCrossCache, index: int) -> None:
        self.cache = cache
        self.index = index

    @property
    def keys(self) -> CacheView:
        return CacheView(self.cache.attention, self.index, None, self.cache.view_shape)

    @property
    def values(self) -> CacheView:
        return self.keys
