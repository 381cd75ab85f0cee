"""The cache object that an encoder-decoder of `transformers` gets as its past keys and values.

The attention function stores and reads keys itself (`attention/forward_context.py`), as the
continuous batching of `transformers` does with its `cache` argument. A decoder-only model needs
no `past_key_values` then. A decoder beside an encoder does: only with one does it reuse the keys
of the encoder's output instead of computing them at every step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from engine.kv_cache.base import KVShape


class PassThroughCache(Cache):
    """A cache that stores nothing and returns its arguments."""

    def __init__(self, shape: KVShape) -> None:
        layers: Any = [PlaceholderLayer() for _ in range(shape.num_layers)]
        super().__init__(layers=layers)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the arguments. key_states, value_states: (rows, heads, 1, head size)"""
        return key_states, value_states

    # Models ask for a single length of all rows, from which they compute masks and positions. Rows
    # differ here, so masks and positions are passed in.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0

    @property
    def is_compileable(self) -> bool:
        return False


class EncodedPlaceholder(Cache):
    """A cache that looks filled to the model: every layer has the same `keys`.

    A model reads only their shape. The attention function recognises them and so knows that it is
    called for cross-attention.
    """

    def __init__(self, shape: KVShape) -> None:
        layers: Any = [EncodedLayer(self) for _ in range(shape.num_layers)]
        super().__init__(layers=layers)
        self.of_a_row = torch.zeros((1, shape.num_heads, 1, shape.head_size), device=shape.device)
        self.keys = self.of_a_row

    def resize(self, num_rows: int) -> Tensor:
        """Resize the keys to a step of `num_rows`; returns them: (rows, heads, 1, head size)."""
        self.keys = self.of_a_row.expand(num_rows, -1, -1, -1)
        return self.keys

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 1  # more than none: the encoder has run

    @property
    def is_compileable(self) -> bool:
        return False


class PlaceholderLayer:
    is_sliding = False
    is_compileable = False
    is_initialized = True


class EncodedLayer(PlaceholderLayer):
    def __init__(self, cache: EncodedPlaceholder) -> None:
        self.cache = cache

    @property
    def keys(self) -> Tensor:
        return self.cache.keys

    @property
    def values(self) -> Tensor:
        return self.cache.keys
