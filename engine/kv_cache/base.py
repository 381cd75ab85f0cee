"""KVCacheManager: owns the memory of the keys and values of all running sequences.

There are two kinds, which give the same tokens. `contiguous.py` gives each sequence its own
tensors, which suits a CPU: no padding is computed. `paged.py` keeps all sequences in one tensor of
pages, which suits a GPU: addresses are fixed and one call serves all rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from engine.kv_cache.encoded import Encoded
from engine.kv_cache.prefix_cache import PromptBlocks

if TYPE_CHECKING:
    from engine.kv_cache.planning.row_size import RowSize


@dataclass(frozen=True, slots=True)
class KVShape:
    """The size of the keys and values of one token: `num_layers` times a key and a value per
    head."""

    num_layers: int
    num_heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_heads * self.head_size * self.dtype.itemsize


class SequenceCache(Protocol):
    """The keys and values of one sequence, whose rows (beams or returned answers) have one length.

    Tokens below the length are written; no others are read.
    """

    num_rows: int
    length: int

    @property
    def capacity(self) -> int:
        """The number of tokens for which each row has memory."""

    def reserve(self, num_tokens: int = 1) -> None:
        """Make sure that each row has memory for `num_tokens` more tokens."""

    def commit_prompt(self, num_tokens: int) -> None:
        """Count the first `num_tokens` of a prompt as written, for all rows."""

    def commit_token(self) -> None:
        """Count the token that a step wrote in each row."""

    def write_encoded(self, keys_values: Tensor) -> Encoded[Any]:
        """Store the keys and values of the encoder's output.

        Returns a handle that others may share.

        keys_values: (layers, 2, heads, prompt tokens, head size)
        """

    def share_encoded(self, encoded: Encoded[Any]) -> None:
        """Share the encoder's output of a sequence with an equal prompt."""

    def reorder(self, rows: Tensor) -> None:
        """Copy row `rows[i]` to row i, as beam search does. rows: (rows,) int64"""

    def clear(self) -> None:
        """Free the memory. A second call does nothing."""


class PrefixSequenceCache(SequenceCache, Protocol):
    """A sequence's cache that can start with a prefix computed for another sequence."""

    def take_prefix(self, blocks: PromptBlocks) -> None:
        """Start with the cached blocks of the prompt, if any; they count in `length`."""

    def keep_prefix(self, blocks: PromptBlocks) -> None:
        """Put the computed blocks of the prompt into the prefix cache, if they were seen before."""


class KVCacheManager(Protocol):
    """Allocates the caches of sequences and owns their memory."""

    shape: KVShape

    def new_sequence(self, num_rows: int, max_tokens: int) -> SequenceCache:
        """Return an empty cache. max_tokens: the longest that the sequence may become"""

    def free_all_but(self, caches: Iterable[Any]) -> None:
        """Free all other caches and pooled memory, after a failed step left unowned caches."""

    def check(self, caches: Iterable[Any]) -> None:
        """Raise InvariantBroken unless exactly these caches own memory, without overlap."""


class WindowedKVCache(KVCacheManager, Protocol):
    """A KV cache with known layers, of which each keeps only what its window needs."""

    row_size: RowSize | None
    """What a row takes, where some layer has a window; else a place for each token."""

    def set_windows(self, windows: tuple[int | None, ...]) -> None:
        """Set the window of each layer. No sequence may be running.

        windows: of each layer; (): no layer has one
        """
