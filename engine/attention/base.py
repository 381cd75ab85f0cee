"""AttentionBackend: a token of each row of a step attends to the keys of its own sequence.

There is one for each KV cache and processor: `torch_backend.py` and `cpu/attention_backend.py`
for contiguous caches, where sequences of any length need neither padding nor a mask, and
`paged_backend.py`. `selection.py` chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from engine.kv_cache.base import KVCacheManager

Spans = tuple[tuple[int, int], ...]  # [begin, end) of each prompt in a row of several

DecodeForward = Callable[[Tensor, Tensor], Tensor]
"""Of the token and the position of each row, (rows,) int64 each, to (rows, vocab) logits."""

ComputeBias = Callable[[int], Tensor]
"""Of a number of tokens n to (query heads, n): the bias that a row's newest token, the last
column, adds to its score of each token."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """The scale, window, soft cap, sinks and bias by which a layer scores keys."""

    scale: float
    window: int | None = None  # tokens that the newest sees, itself among them; None: all
    softcap: float | None = None  # scores are bounded by it, softly
    sinks: Tensor | None = None  # (query heads,): a score beside those of the keys, of no value

    @property
    def is_usual(self) -> bool:
        """Whether torch's own attention computes it, given a mask for the window."""
        return self.softcap is None and self.sinks is None


class PromptAttention(Protocol):
    """Attention within prompts that lie one after the other in a single row."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        is_causal: bool,
        scoring: Scoring,
        position_bias: Tensor | None,
    ) -> Tensor:
        """Let each prompt attend to itself.

        query:         (1, query heads, tokens, head size)
        key, value:    (1, heads, tokens, head size), as `write_prompts` returns them: of whole
                       prompts, though the row may hold only the rest of one whose start is in
                       its cache
        position_bias: (1, query heads, tokens, tokens) of an encoder, by distance alone
        returns:       (1, tokens, query heads, head size); any finite numbers for tokens behind
                       the last prompt, which pad the row
        """


class AttentionBackend(Protocol):
    """Attends to sequences of its KV cache, and is given no others."""

    kv_cache: KVCacheManager
    compute_bias: ComputeBias | None
    """Set where a model adds a bias to the scores, as T5 does."""
    windows: tuple[int | None, ...]
    """Of each layer, as its calls will name them; (): none has one. Set before `prepare`."""

    def prepare(self, decoding: list[Any], admitted: list[Any], spans: Spans) -> None:
        """Prepare for a forward pass whose row holds a token of each row of `decoding`, in their
        order, and then the prompts of `admitted`, or what is to be read of them next: their caches
        may have the tokens before it. Reserves their memory.

        spans: of what is read of the prompts, counted from the first token of the first
        """

    def prompt_attention(self, spans: Spans, num_tokens: int) -> PromptAttention:
        """Return the attention of prompts, in one row of `num_tokens`, to themselves."""

    def write_prompts(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store what a layer makes of the prompts, and return what they attend to: the same, or,
        if the start of one is in its cache, the keys and values of whole prompts; but before the
        row of no more tokens than the layer's window.

        keys, values: (1, heads, tokens, head size)
        """

    def attend(
        self,
        layer: int,
        query: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
        scoring: Scoring,
    ) -> Tensor:
        """Let the newest token of each row attend to its sequence.

        query:        (rows, query heads, 1, head size)
        keys, values: (rows, heads, 1, head size) of those tokens, stored first; None where rows
                      attend to the encoder's output
        returns:      (rows, 1, query heads, head size)
        """


def usual_scale(head_size: int) -> float:
    return 1 / math.sqrt(head_size)
