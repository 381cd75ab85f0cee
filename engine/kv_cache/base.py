"""KVCacheManager: the memory of the keys and values of all running sequences.

There are two, and both lead to the same tokens. `contiguous.py` gives each sequence a tensor of
its own, for a CPU, which should compute nothing that it need not. `paged.py` keeps all sequences
in one tensor of pages, for a GPU, which needs fixed addresses and one call for all rows.
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
    """The size of what a model keeps of one token: `num_layers` times a key and a value of each
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
    """The keys and values of one sequence. Its rows (beams, or returned answers) have one length;
    tokens below it are written, and no others are read."""

    num_rows: int
    length: int

    @property
    def capacity(self) -> int:
        """The number of tokens for which each row has memory."""

    def reserve(self, num_tokens: int = 1) -> None:
        """Make sure that each row has memory for `num_tokens` more."""

    def commit_prompt(self, num_tokens: int) -> None:
        """Count the first `num_tokens` of a prompt, whose keys and values all rows share."""

    def commit_token(self) -> None:
        """Count the token that a step wrote in each row."""

    def write_encoded(self, keys_values: Tensor) -> Encoded[Any]:
        """Store what the decoder attends to of an encoder's output. Returns what others may hold.

        keys_values: (layers, 2, heads, prompt tokens, head size)
        """

    def share_encoded(self, encoded: Encoded[Any]) -> None:
        """Hold what was stored for an equal prompt."""

    def reorder(self, rows: Tensor) -> None:
        """Let row i go on from what row `rows[i]` was. rows: (rows,) int64"""

    def clear(self) -> None:
        """Free the memory. A second call does nothing."""


class PrefixSequenceCache(SequenceCache, Protocol):
    """The cache of a sequence whose prompt may begin with what was computed for another."""

    def take_prefix(self, blocks: PromptBlocks) -> None:
        """Begin with what is kept of the prompt, if anything: it counts in `length`."""

    def keep_prefix(self, blocks: PromptBlocks) -> None:
        """Let others find what is computed of the prompt, if it was met before."""


class KVCacheManager(Protocol):
    """Allocates the caches of sequences and owns their memory."""

    shape: KVShape

    def new_sequence(self, num_rows: int, max_tokens: int) -> SequenceCache:
        """An empty cache. max_tokens: the length that the sequence may come to have"""

    def free_all_but(self, caches: Iterable[Any]) -> None:
        """Free every other cache, and the memory that is pooled: a step failed in which
        sequences may have been made that have no owner."""

    def check(self, caches: Iterable[Any]) -> None:
        """Raise InvariantBroken unless exactly these caches own memory, none of it twice."""


class WindowedKVCache(KVCacheManager, Protocol):
    """One whose layers are known, and keep no more than their windows need."""

    row_size: RowSize | None
    """What a row takes, where some layer has a window; else a place for each token."""

    def set_windows(self, windows: tuple[int | None, ...]) -> None:
        """Keep of each layer what its window needs, from now on. No sequence runs.

        windows: of each layer; (): none has one
        """
