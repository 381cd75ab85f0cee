"""Runner: the forward passes of a family of models, as the in-flight backend calls them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from engine.core.sequence import Sequence
from engine.kv_cache.base import KVCacheManager, SequenceCache

NONE_BEGUN: Mapping[int, SequenceCache] = MappingProxyType({})


class Runner(Protocol):
    """The forward passes of a family of models.

    The parameter `begun` has the caches of partly read prompts, by sequence id. Prompts are partly
    read only if the scheduler slices them; a runner whose prompts are never sliced ignores `begun`.
    """

    @property
    def kv_cache(self) -> KVCacheManager:
        """The KV cache manager of its sequences."""

    def refresh(self) -> None:
        """Read the model's configuration again after a change. No sequence may be running."""

    def start_ids(self, sequence: Sequence) -> tuple[int, ...]:
        """The tokens of a row before its first new token."""

    def prefill(
        self, sequences: list[Sequence], begun: Mapping[int, SequenceCache] = NONE_BEGUN
    ) -> tuple[list[SequenceCache], Tensor | None]:
        """Prefill prompts, each up to its sequence's `num_read_tokens`.

        Returns their caches and the logits of the token after each, (sequences, vocab). The logits
        are None where the first decode step gives them.
        """

    def decode(self, caches: list[SequenceCache], tokens: list[int]) -> Tensor:
        """Run a decode step: write the newest token of each row, and return the logits of the next.

        The caller counts the tokens as written. Returns (rows, vocab), valid until the next call.
        """

    def prefill_and_decode(
        self,
        sequences: list[Sequence],
        caches: list[SequenceCache],
        tokens: list[int],
        begun: Mapping[int, SequenceCache] = NONE_BEGUN,
    ) -> tuple[list[SequenceCache], Tensor] | None:
        """Prefill and decode in one forward pass.

        Returns the caches of the prompts, and the logits of the rows and then of the prompts,
        (rows + sequences, vocab). Returns None if it would take more than one pass.
        """
