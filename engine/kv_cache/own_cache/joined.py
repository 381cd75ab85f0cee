"""JoinedKVCache: the rows of all running sequences in one cache of `transformers`.

It serves models with unknown attention: the model's own code writes and reads the keys, with its
own masks. Rows are padded on the left, as in a batch of `model.generate`, so the newest tokens
share the last column. The rows are rebuilt when sequences join or leave; between such steps each
layer grows in place (`joined_layers.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from engine.errors import InvariantBroken
from engine.kv_cache.base import KVShape
from engine.kv_cache.own_cache.joined_layers import (
    JoinedLayer,
    KeysValues,
    LayerContent,
    contents_of,
    join_columns,
    layer_of,
)

# Fills places without a token in tests and proofs, so that reading them changes an answer.
POISON = 64.0


@dataclass(slots=True, eq=False, weakref_slot=True)
class EncoderOutput:
    """An encoder's output for one prompt, and its keys and values by layer.

    Sequences with equal prompts share it, and it is never written to.
    """

    states: Tensor  # (1, tokens, width)
    layers: list[KeysValues]


class JoinedSequenceCache:
    """A SequenceCache that owns its keys only while its rows are not joined with others."""

    def __init__(self, manager: JoinedKVCache, num_rows: int) -> None:
        self.manager = manager
        self.num_rows = num_rows
        self.length = 0
        self.layers: list[LayerContent] | None = None  # of one row, or of all
        self.encoded: EncoderOutput | None = None
        # The state of the answer's random stream, if the prefill has drawn from it.
        self.random_state: Tensor | None = None

    @property
    def capacity(self) -> int:
        return self.length if self.layers is not None or self.manager.has_joined(self) else 0

    def reserve(self, num_tokens: int = 1) -> None:
        """Do nothing: layers grow as they are written."""

    def commit_prompt(self, num_tokens: int) -> None:
        self.length = num_tokens

    def commit_token(self) -> None:
        self.length += 1

    def write_encoded(self, keys_values: Tensor) -> Any:
        raise AssertionError("the runner stores what a model's own cache holds")

    def share_encoded(self, encoded: Any) -> None:
        raise AssertionError("the runner stores what a model's own cache holds")

    def reorder(self, rows: Tensor) -> None:
        layers = self.layers if self.layers is not None else self.manager.rows_of(self)
        for each in (tensor for layer in layers for tensor in layer.tensors()):
            if each.shape[0] > 1:  # otherwise a single row stands for all
                each.copy_(each.index_select(0, rows.to(each.device)))

    def clear(self) -> None:
        self.layers = self.encoded = None
        self.length = 0
        self.manager.forget(self)


@dataclass(slots=True, eq=False)
class JoinedRows:
    """The rows of sequences that are decoded together."""

    caches: list[JoinedSequenceCache]
    num_pads: list[int]  # columns before the first token of each cache
    layers: list[JoinedLayer]
    past: Cache
    encoder_states: Tensor | None  # (rows, longest prompt, width)
    encoder_mask: Tensor | None  # (rows, longest prompt) int64
    device: torch.device

    def num_columns(self) -> int:
        """The number of columns of counted tokens; a failed step may have written one more."""
        return max(
            pads + each.length for pads, each in zip(self.num_pads, self.caches, strict=True)
        )

    def rows_of(self, cache: JoinedSequenceCache) -> list[LayerContent]:
        """Views of a sequence's rows, without padding and uncounted columns."""
        at = self.caches.index(cache)
        begin = sum(each.num_rows for each in self.caches[:at])
        rows, first = slice(begin, begin + cache.num_rows), self.num_pads[at]
        columns = slice(first, first + cache.length)
        return [layer.content(rows, columns) for layer in self.layers]

    def mask(self) -> Tensor:
        """Return (rows, columns + 1) int64: 1 where a row has a token, and for its next one."""
        num_pads = [
            pads
            for pads, each in zip(self.num_pads, self.caches, strict=True)
            for _ in range(each.num_rows)
        ]
        at = torch.arange(self.num_columns() + 1, device=self.device)
        return (at >= torch.tensor(num_pads, device=at.device)[:, None]).long()


class JoinedKVCache:
    """The KVCacheManager of JoinedSequenceCaches.

    Always: each has its own keys, or rows among the joined ones.
    """

    def __init__(self, shape: KVShape, poisoned: bool = False) -> None:
        """shape:    by which memory is counted
        poisoned: see POISON
        """
        self.shape = shape
        self.poisoned = poisoned
        self.caches: set[JoinedSequenceCache] = set()
        self.joined: list[JoinedRows] = []

    def new_sequence(self, num_rows: int, max_tokens: int = 0) -> JoinedSequenceCache:
        cache = JoinedSequenceCache(self, num_rows)
        self.caches.add(cache)
        return cache

    def free_all_but(self, caches: Iterable[JoinedSequenceCache]) -> None:
        for each in self.caches - set(caches):
            each.clear()

    def check(self, caches: Iterable[JoinedSequenceCache]) -> None:
        owners = set(caches)
        if owners != self.caches:
            raise InvariantBroken(f"{len(owners)} sequences own {len(self.caches)} caches")
        for each in owners:
            num_places = (each.layers is not None) + sum(
                each in rows.caches for rows in self.joined
            )
            if num_places != 1:
                raise InvariantBroken(f"a sequence has its keys in {num_places} places")

    def has_joined(self, cache: JoinedSequenceCache) -> bool:
        return any(cache in rows.caches for rows in self.joined)

    def forget(self, cache: JoinedSequenceCache) -> None:
        self.caches.discard(cache)
        self.joined = [rows for rows in self.joined if not self.caches.isdisjoint(rows.caches)]

    def rows_of(self, cache: JoinedSequenceCache) -> list[LayerContent]:
        """Views of a sequence's joined rows, without padding."""
        (joined,) = (rows for rows in self.joined if cache in rows.caches)
        return joined.rows_of(cache)

    def join(self, caches: list[JoinedSequenceCache]) -> JoinedRows:
        """Join the rows of these sequences, in order, ready for their next token."""
        for rows in self.joined:
            if rows.caches == caches:
                for layer in rows.layers:
                    layer.resize(rows.num_columns())
                return rows
        self._part(caches)
        rows = self._joined(caches)
        self.joined.append(rows)
        for each in caches:
            each.layers = None
        return rows

    def _part(self, caches: list[JoinedSequenceCache]) -> None:
        """Give these sequences their own keys, and also the sequences that they are joined with.

        The former get views, since they are copied next; the others get copies, since a view would
        keep all rows in memory.
        """
        for rows in [each for each in self.joined if not set(caches).isdisjoint(each.caches)]:
            for cache in self.caches.intersection(rows.caches):
                views, stays = rows.rows_of(cache), cache in caches
                cache.layers = views if stays else [each.clone() for each in views]
            self.joined.remove(rows)

    def _joined(self, caches: list[JoinedSequenceCache]) -> JoinedRows:
        lengths = [each.length for each in caches]
        num_rows = [each.num_rows for each in caches]
        num_pads = [max(lengths) - each for each in lengths]
        filling = POISON if self.poisoned else 0.0
        layers = [
            layer_of(list(parts), num_rows, lengths, filling)
            for parts in zip(*(own(each) for each in caches), strict=True)
        ]
        past: Any = DynamicCache()
        past.layers = layers
        states = mask = None
        if caches[0].encoded is not None:
            past, states, mask = self._with_encoder(past, caches, filling)
        return JoinedRows(list(caches), num_pads, layers, past, states, mask, self.shape.device)

    def _with_encoder(
        self, own_past: Cache, caches: list[JoinedSequenceCache], filling: float
    ) -> tuple[Cache, Tensor, Tensor]:
        encoded = [each.encoded for each in caches if each.encoded is not None]
        lengths = [each.states.shape[1] for each in encoded]
        num_pads = [max(lengths) - each for each in lengths]
        cross: Any = DynamicCache()
        cross.layers = []
        num_rows = [each.num_rows for each in caches]
        behind = [-each for each in num_pads]
        for parts in zip(*(each.layers for each in encoded), strict=True):
            layer = DynamicLayer()
            keys, values = (
                join_columns([both[at] for both in parts], num_rows, behind, filling)
                for at in (0, 1)
            )
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cross.layers.append(layer)
        states = join_columns([each.states[:, None] for each in encoded], num_rows, behind, 0.0)
        states = states[:, 0]
        at = torch.arange(max(lengths), device=states.device)
        by_row = [
            length
            for length, each in zip(lengths, caches, strict=True)
            for _ in range(each.num_rows)
        ]
        mask = (at < torch.tensor(by_row, device=at.device)[:, None]).long()
        past = EncoderDecoderCache(own_past, cross)
        past.is_updated = dict.fromkeys(range(len(cross.layers)), True)
        return past, states, mask


def own(cache: JoinedSequenceCache) -> list[LayerContent]:
    assert cache.layers is not None
    return cache.layers


def keys_by_layer(past: Any) -> list[KeysValues]:
    """Return the keys and values of an encoder's output that a model stored.

    Raises UnknownCache.
    """
    both = [each.keys_values for each in contents_of(past)]
    return [each for each in both if each is not None]
