"""AttentionBackend: the interface through which each row of a step attends to its own sequence.

Each KV cache has a backend: `torch_backend.py` and `cpu/attention_backend.py` serve contiguous
caches, where sequences of different lengths need neither padding nor a mask, and `paged_backend.py`
serves the paged one. `selection.py` chooses.
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
    """The scale, window, soft cap and sinks by which a layer scores keys."""

    scale: float
    window: int | None = None  # tokens that the newest attends to, itself included; None: all
    softcap: float | None = None  # cap * tanh(score / cap); None: no cap
    sinks: Tensor | None = None  # (query heads,): an extra score in the softmax, without a value

    @property
    def is_usual(self) -> bool:
        """Whether torch's fused attention can compute this; the window goes into its mask."""
        return self.softcap is None and self.sinks is None


class PromptAttention(Protocol):
    """Attention within prompts that are concatenated in one row."""

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
        key, value:    (1, heads, tokens, head size), as `write_prompts` returns them. They cover
                       whole prompts, even where the start of a prompt is in its cache and the row
                       holds only the rest
        position_bias: (1, query heads, tokens, tokens) in an encoder, a function of distance alone
        returns:       (1, tokens, query heads, head size). Tokens after the last prompt are
                       padding; their numbers are finite and have no meaning
        """


class AttentionBackend(Protocol):
    """Attention to the sequences of one KV cache."""

    kv_cache: KVCacheManager
    compute_bias: ComputeBias | None
    """Set where a model adds a bias to the scores, as T5 does."""
    windows: tuple[int | None, ...]
    """Of each layer, as its calls will name them; (): none has one. Set before `prepare`."""

    def prepare(self, decoding: list[Any], admitted: list[Any], spans: Spans) -> None:
        """Prepare for a forward pass and reserve the memory that it writes.

        The row of the pass has one token for each row of `decoding`, in order, and then the tokens
        that are read of the prompts of `admitted`. The caches of `admitted` may hold earlier
        tokens.

        spans: of the prompt tokens in the row, counted from the first prompt token
        """

    def prompt_attention(self, spans: Spans, num_tokens: int) -> PromptAttention:
        """Return the attention of the prompts, in one row of `num_tokens`, to themselves."""

    def write_prompts(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's prompt keys and values to the caches; return those to attend to.

        These are the arguments themselves or, where the start of a prompt is in its cache, the keys
        and values of whole prompts. Before the row's tokens they go back no further than the
        layer's window.

        keys, values: (1, heads, tokens, head size)
        returns:      the same shape, with the tokens from the caches added
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
        keys, values: (rows, heads, 1, head size), of the newest tokens, which are written to the
                      caches first; None for cross-attention
        returns:      (rows, 1, query heads, head size)
        """


def usual_scale(head_size: int) -> float:
    return 1 / math.sqrt(head_size)
