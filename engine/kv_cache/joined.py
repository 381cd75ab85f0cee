"""JoinedKVCache: the rows of all running sequences in one cache of `transformers`.

For a model whose attention nobody here knows: its own code stores keys and reads them, with
masks that it makes itself. Rows are padded on the left, as in a batch of `model.generate`, so
that the newest token of each is in the last column. Sequences that join or leave make the rows
anew; between such steps tokens are appended in place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from engine.errors import InvariantBroken
from engine.kv_cache.base import KVShape

SPARE_COLUMNS = 64  # so that a step seldom moves all keys to append its own
# Stands where a row has no token, in tests and proofs: whoever looks there answers otherwise.
POISON = 64.0

KeysValues = tuple[Tensor, Tensor]
"""Of a layer: (rows, heads, tokens, head size) each; the sizes of both may differ."""


class UnknownCache(Exception):
    """A model keeps something between steps that cannot be joined, in words."""


class SpareLayer(DynamicLayer):
    """A layer that appends in place while it has columns to spare."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.buffers = (with_spare_columns(keys), with_spare_columns(values))
        self.is_initialized = True
        self.resize(keys.shape[2])

    def resize(self, num_columns: int) -> None:
        self.keys, self.values = (each[:, :, :num_columns] for each in self.buffers)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> KeysValues:
        assert self.keys is not None
        begin, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if end > self.buffers[0].shape[2]:
            keys, values = self.buffers
            self.buffers = (with_spare_columns(keys), with_spare_columns(values))
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, begin:end] = states
        self.resize(end)
        assert self.values is not None
        return self.keys, self.values


def with_spare_columns(tensor: Tensor) -> Tensor:
    return pad(tensor, (0, 0, 0, SPARE_COLUMNS))


@dataclass(slots=True, eq=False, weakref_slot=True)
class Encoded:
    """What an encoder made of one prompt, and the keys and values of it by layer. Sequences of
    equal prompts share it; nobody writes to it."""

    states: Tensor  # (1, tokens, width)
    layers: list[KeysValues]


class JoinedSequenceCache:
    """A SequenceCache that owns its keys only while its rows are not among the joined ones."""

    def __init__(self, manager: JoinedKVCache, num_rows: int) -> None:
        self.manager = manager
        self.num_rows = num_rows
        self.length = 0
        self.layers: list[KeysValues] | None = None  # of one row, or of all
        self.encoded: Encoded | None = None
        # Of what its answer is drawn from, if reading the prompt took something of it.
        self.random_state: Tensor | None = None

    @property
    def capacity(self) -> int:
        return self.length if self.layers is not None or self.manager.has_joined(self) else 0

    def reserve(self, num_tokens: int = 1) -> None:
        """Layers grow as they are written."""

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
        if layers and layers[0][0].shape[0] == 1:
            return  # the rows are one yet
        for each in (tensor for both in layers for tensor in both):
            each.copy_(each.index_select(0, rows.to(each.device)))

    def clear(self) -> None:
        self.layers = self.encoded = None
        self.length = 0
        self.manager.forget(self)


@dataclass(slots=True, eq=False)
class JoinedRows:
    """Rows of sequences that take their steps together."""

    caches: list[JoinedSequenceCache]
    num_pads: list[int]  # columns before the first token of each cache
    layers: list[SpareLayer]
    past: Cache
    encoder_states: Tensor | None  # (rows, longest prompt, width)
    encoder_mask: Tensor | None  # (rows, longest prompt) int64

    def num_columns(self) -> int:
        """Of the tokens that are counted; a step that failed may have written one more."""
        return max(
            pads + each.length for pads, each in zip(self.num_pads, self.caches, strict=True)
        )

    def rows_of(self, cache: JoinedSequenceCache) -> list[KeysValues]:
        """Views of the rows of a sequence, without padding and what nobody has counted."""
        at = self.caches.index(cache)
        begin = sum(each.num_rows for each in self.caches[:at])
        rows, first = slice(begin, begin + cache.num_rows), self.num_pads[at]
        tokens = slice(first, first + cache.length)
        return [
            (keys[rows, :, tokens], values[rows, :, tokens])
            for keys, values in (layer.buffers for layer in self.layers)
        ]

    def mask(self) -> Tensor:
        """(rows, columns and the next one) int64: 1 where a row has a token."""
        num_pads = [
            pads
            for pads, each in zip(self.num_pads, self.caches, strict=True)
            for _ in range(each.num_rows)
        ]
        at = torch.arange(self.num_columns() + 1, device=self.layers[0].device)
        return (at >= torch.tensor(num_pads, device=at.device)[:, None]).long()


class JoinedKVCache:
    """The KVCacheManager of JoinedSequenceCaches. Always: each has keys of its own, or rows among
    the joined ones."""

    def __init__(self, shape: KVShape, poisoned: bool = False) -> None:
        """shape: by which memory is counted
        poisoned: see POISON"""
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

    def rows_of(self, cache: JoinedSequenceCache) -> list[KeysValues]:
        """Views of the joined rows of a sequence, without padding."""
        (joined,) = (rows for rows in self.joined if cache in rows.caches)
        return joined.rows_of(cache)

    def join(self, caches: list[JoinedSequenceCache]) -> JoinedRows:
        """The rows of these sequences, in their order, ready for their next token."""
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
        """Give these sequences their own keys, and those that they are joined with: views where
        they are copied in a moment, else copies, for a view would keep all rows in memory."""
        for rows in [each for each in self.joined if not set(caches).isdisjoint(each.caches)]:
            for cache in self.caches.intersection(rows.caches):
                views, stays = rows.rows_of(cache), cache in caches
                cache.layers = views if stays else [(k.clone(), v.clone()) for k, v in views]
            self.joined.remove(rows)

    def _joined(self, caches: list[JoinedSequenceCache]) -> JoinedRows:
        width = max(each.length for each in caches)
        num_pads = [width - each.length for each in caches]
        filling = POISON if self.poisoned else 0.0
        layers = [
            SpareLayer(*(join_columns(part, caches, num_pads, filling) for part in parts))
            for parts in by_layer([own(each) for each in caches])
        ]
        past: Any = DynamicCache()
        past.layers = layers
        states = mask = None
        if caches[0].encoded is not None:
            past, states, mask = self._with_encoder(past, caches, filling)
        return JoinedRows(list(caches), num_pads, layers, past, states, mask)

    def _with_encoder(
        self, own_past: Cache, caches: list[JoinedSequenceCache], filling: float
    ) -> tuple[Cache, Tensor, Tensor]:
        encoded = [each.encoded for each in caches if each.encoded is not None]
        lengths = [each.states.shape[1] for each in encoded]
        num_pads = [max(lengths) - each for each in lengths]
        cross: Any = DynamicCache()
        cross.layers = []
        for parts in by_layer([each.layers for each in encoded]):
            layer = DynamicLayer()
            keys, values = (
                join_columns(part, caches, [-pads for pads in num_pads], filling) for part in parts
            )
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cross.layers.append(layer)
        states = join_columns(
            [each.states[:, None] for each in encoded], caches, [-each for each in num_pads], 0.0
        )[:, 0]
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


def own(cache: JoinedSequenceCache) -> list[KeysValues]:
    assert cache.layers is not None
    return cache.layers


def by_layer(caches: list[list[KeysValues]]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """The keys of all sequences and their values, layer by layer."""
    return [
        ([keys for keys, _ in layer], [values for _, values in layer])
        for layer in zip(*caches, strict=True)
    ]


def join_columns(
    parts: list[Tensor], caches: list[JoinedSequenceCache], num_pads: list[int], filling: float
) -> Tensor:
    """(rows, heads, columns, size) of all caches.

    parts:    (1 or the rows of the cache, heads, tokens, size) of each cache
    num_pads: columns before the tokens of each; negative: behind them
    """
    padded = [
        pad(part, (0, 0, max(num, 0), max(-num, 0)), value=filling).expand(
            cache.num_rows, -1, -1, -1
        )
        for part, cache, num in zip(parts, caches, num_pads, strict=True)
    ]
    # One sequence with a long document is not copied for each of its rows.
    return padded[0] if len(padded) == 1 else torch.cat(padded)


def layers_of(past: Cache) -> list[KeysValues]:
    """What a model stored in a `DynamicCache`. Raises UnknownCache."""
    layers = []
    for each in past.layers:
        if type(each) is not DynamicLayer or each.keys is None or each.values is None:
            raise UnknownCache(f"it keeps a {type(each).__name__} between steps")
        layers.append((each.keys, each.values))
    if not layers:
        raise UnknownCache("it keeps no keys between steps")
    return layers
