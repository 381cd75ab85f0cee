"""ContiguousKVCache: each sequence has its own tensors, which grow with it in buckets.

A sequence takes the memory of its present length, not of the whole context. Layers with a window
keep the window and a bounded number of other tokens (`layer_group.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakSet

import torch
from torch import Tensor

from engine.errors import InvariantBroken
from engine.kv_cache.base import KVShape
from engine.kv_cache.buffer_pool import MAX_POOLED_BYTES, BufferPool
from engine.kv_cache.encoded import Encoded, check_holders
from engine.kv_cache.layer_group import LayerGroup, layer_numbers, layers_by_window, max_columns
from engine.kv_cache.planning.row_size import RowSize
from engine.kv_cache.prefix_cache import PrefixCache, PromptBlocks

BLOCK_TOKENS = 32  # of prompts that share their beginnings


class ContiguousSequenceCache:
    """A SequenceCache with one tensor for each LayerGroup.

    Always: tokens below `length` are written, later ones are never read.
    """

    def __init__(
        self,
        shape: KVShape,
        num_rows: int,
        by_ancestors: bool,
        poisoned: bool = False,
        max_tokens: int = 0,
        buffer_pool: BufferPool | None = None,
        windows: tuple[int | None, ...] = (),
    ) -> None:
        """by_ancestors: reordered rows copy no keys; a table says in which row each token lies
        poisoned:     unwritten memory is NaN, so that a test notices a read
        max_tokens:   the longest that the sequence may become; 0: unknown
        buffer_pool:  provides memory and takes it back
        windows:      of each layer; (): no layer has one
        """
        self.shape = shape
        self.num_rows = num_rows
        self.poisoned = poisoned
        self.max_tokens = max_tokens
        self.length = self.capacity = 0
        self.num_moves = 0  # how often its buffers were replaced
        self.num_prompt_rows = 1 if by_ancestors else num_rows  # rows to write a prompt into
        pool = buffer_pool or BufferPool()
        self.groups = [
            LayerGroup(shape, layers, window, num_rows, by_ancestors, poisoned, pool)
            for window, layers in layers_by_window(shape.num_layers, windows).items()
        ]
        # Of each layer: its group, and its number there.
        self.places = {
            layer: (group, at)
            for group in self.groups
            for at, layer in enumerate(layer_numbers(shape.num_layers, group.layers))
        }
        # (layers, 2, heads, prompt tokens, head size), possibly shared
        self.encoded: Encoded[Tensor] | None = None

    def reserve(self, num_tokens: int = 1) -> None:
        if self.length + num_tokens <= self.capacity:
            return
        self.num_moves += 1
        self.capacity = min(
            each.reserve(self.length, num_tokens, self.max_tokens) for each in self.groups
        )

    def of_layer(self, layer: int, begin: int, end: int) -> Tensor:
        """Return a layer's keys and values of the tokens [begin, end), which it must still keep.

        returns: (2, rows, heads, tokens, head size)
        """
        group, at = self.places[layer]
        return group.kv[at, :, :, :, group.columns(begin, end)]

    def write_prompt(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write a layer's next prompt tokens for all rows; `commit_prompt` counts them.

        keys, values: (heads, tokens, head size)
        """
        written = self.of_layer(layer, self.length, self.length + keys.shape[1])
        written[0, : self.num_prompt_rows] = keys
        written[1, : self.num_prompt_rows] = values

    def take_prefix(self, blocks: PromptBlocks) -> None:
        """Start with a copy of the cached blocks of the prompt."""
        kept, size = blocks.cache.use(blocks), blocks.cache.block_tokens
        if not kept:
            return
        num_kept = len(kept) * size
        for group in self.groups:
            group.skip(num_kept)
            end = 1 + (blocks.num_tokens if group.window is None else num_kept)
            group.reserve(group.first, end - group.first, self.max_tokens)
            for number in range(group.first // size, len(kept)):
                columns = group.columns(number * size, (number + 1) * size)
                block = kept[number].place[group.layers][:, :, None]
                group.kv[:, :, : self.num_prompt_rows, :, columns] = block
        self.commit_prompt(num_kept)

    def keep_prefix(self, blocks: PromptBlocks) -> None:
        """Let the prefix cache copy the blocks of the prompt that every layer still has in full."""
        size = blocks.cache.block_tokens

        def place_of(number: int) -> Tensor:
            shape = self.shape
            block = self.groups[0].kv.new_empty(
                (shape.num_layers, 2, shape.num_heads, size, shape.head_size)
            )
            for group in self.groups:
                columns = group.columns(number * size, (number + 1) * size)
                block[group.layers] = group.kv[:, :, 0, :, columns]
            return block

        num_gone = max(each.first for each in self.groups)
        blocks.cache.keep(blocks, self.length, place_of, num_gone)

    def commit_prompt(self, num_tokens: int) -> None:
        self.length = num_tokens
        for each in self.groups:
            each.commit_prompt(num_tokens)

    def commit_token(self) -> None:
        self.length += 1

    @property
    def encoded_kv(self) -> Tensor | None:
        return None if self.encoded is None else self.encoded.content

    def write_encoded(self, keys_values: Tensor) -> Encoded[Tensor]:
        free = poison if self.poisoned else leave
        encoded = Encoded(keys_values.contiguous(), free)
        self.share_encoded(encoded)
        return encoded

    def share_encoded(self, encoded: Encoded[Tensor]) -> None:
        self.encoded = encoded.hold(self)

    def reorder(self, rows: Tensor) -> None:
        for each in self.groups:
            each.reorder(rows, self.length)

    @torch.inference_mode()
    def clear(self) -> None:
        for each in self.groups:
            each.clear()
        if self.encoded is not None:
            self.encoded.release(self)
        self.encoded = None
        self.num_moves += 1
        self.length = self.capacity = self.max_tokens = 0


class ContiguousKVCache:
    """The KVCacheManager of ContiguousSequenceCaches.

    Always: no two of them share memory, except for encoder outputs, which are counted. None of
    their memory is also in the pool or in the prefix cache.
    """

    def __init__(
        self,
        shape: KVShape,
        by_ancestors: bool = False,
        poisoned: bool = False,
        max_tokens: int = 0,
        max_prefix_tokens: int = 0,
    ) -> None:
        """by_ancestors, poisoned: see ContiguousSequenceCache
        max_tokens:        of all sequences at their longest, and of cached prefixes
        max_prefix_tokens: of cached prefixes; 0: no prefix cache
        """
        self.shape = shape
        self.by_ancestors = by_ancestors
        self.poisoned = poisoned
        self.max_tokens = max_tokens
        self.windows: tuple[int | None, ...] = ()  # of each layer; (): none has one
        self.row_size: RowSize | None = None  # None: by its tokens alone
        self.buffer_pool = BufferPool(MAX_POOLED_BYTES)
        self.prefixes: PrefixCache[Tensor] | None = None
        if max_prefix_tokens:
            max_blocks = max_prefix_tokens // BLOCK_TOKENS
            self.prefixes = PrefixCache(BLOCK_TOKENS, max_blocks, self._let_go)
        self.sequences: WeakSet[ContiguousSequenceCache] = WeakSet()

    def set_windows(self, windows: tuple[int | None, ...]) -> None:
        self.windows = windows
        self.row_size = RowSize.of_groups(
            self.shape, ((1, None if each is None else max_columns(each)) for each in windows)
        )

    def new_sequence(self, num_rows: int, max_tokens: int = 0) -> ContiguousSequenceCache:
        cache = ContiguousSequenceCache(
            self.shape, num_rows, self.by_ancestors, self.poisoned, max_tokens, self.buffer_pool,
            self.windows,
        )  # fmt: skip
        if self.prefixes is not None:
            self.sequences.add(cache)
            places_of = self.row_size.num_places if self.row_size is not None else int
            reserved = sum(each.num_rows * places_of(each.max_tokens) for each in self.sequences)
            self.prefixes.make_room((self.max_tokens - reserved) // BLOCK_TOKENS)
        return cache

    def _let_go(self, block: Tensor) -> None:
        if self.poisoned:
            with torch.inference_mode():
                block.fill_(torch.nan)

    def free_all_but(self, caches: Iterable[ContiguousSequenceCache]) -> None:
        """Free pooled memory and prefixes; unowned caches are freed with their tensors."""
        self.buffer_pool.clear()
        if self.prefixes is not None:
            self.prefixes.shrink(0)

    def check(self, caches: Iterable[ContiguousSequenceCache]) -> None:
        owners = list(caches)
        check_holders(owners)
        storages = [group.kv.untyped_storage() for each in owners for group in each.groups]
        storages += self.buffer_pool.buffers
        if self.prefixes is not None:
            self.prefixes.check({})
            storages += [each.place.untyped_storage() for each in self.prefixes.kept.values()]
        addresses = [each.data_ptr() for each in storages if each.nbytes()]
        if len(set(addresses)) != len(addresses):
            raise InvariantBroken(
                f"{len(addresses)} sequences and pooled buffers have {len(set(addresses))} tensors"
            )


@torch.inference_mode()
def poison(tensor: Tensor) -> None:
    tensor.fill_(torch.nan)


def leave(_: Tensor) -> None:
    """Do nothing: the memory is freed with its tensor."""
