"""StepExecutor: how a runner's forward passes are executed; chosen once, at load (`selection.py`).

Eager, here, calls the model as it is written. `captured_step.py` replays recorded calls on a CPU,
`graph_executor.py` CUDA graphs, and a fused step, here too, is one chain of compiled calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.attention.base import DecodeForward, Spans
from engine.kv_cache.base import SequenceCache


@dataclass(frozen=True, slots=True)
class PrefillBatch:
    """A row of tokens: those of a decode step, if any, and then prompts."""

    token_ids: list[int]
    positions: list[int]
    spans: Spans  # of the prompts, counted from the first token of the first
    num_decode_tokens: int = 0
    logits_indices: tuple[int, ...] = ()  # tokens whose logits are requested


PrefillForward = Callable[[PrefillBatch], Tensor]
"""To the (requested, vocab) logits of a decoder, or the (tokens, width) states of an encoder."""


class StepExecutor(Protocol):
    """The attention backends are prepared before each call."""

    mixes_prefill: bool
    """Whether `prefill` may have tokens of a decode step before its prompts."""

    def prefill(self, batch: PrefillBatch) -> Tensor:
        """See PrefillForward; good until the next call."""

    def decode(self, caches: list[Any], tokens: list[int]) -> Tensor:
        """Compute a step of the sequences that the attention is prepared for.

        tokens:  the newest of each row
        returns: (rows, vocab) logits, good until the next call
        """


class EagerExecutor:
    mixes_prefill = True

    def __init__(
        self, decode: DecodeForward, prefill: PrefillForward, device: torch.device
    ) -> None:
        self.decode_forward = decode
        self.prefill_forward = prefill
        self.device = device

    def prefill(self, batch: PrefillBatch) -> Tensor:
        return self.prefill_forward(batch)

    def decode(self, caches: list[Any], tokens: list[int]) -> Tensor:
        inputs = torch.tensor([tokens, row_lengths(caches)], device=self.device)
        return self.decode_forward(inputs[0], inputs[1])


class FusedExecutor:
    """Every pass is one chain of compiled calls."""

    mixes_prefill = True

    def __init__(self, fused_step: Any) -> None:
        """fused_step: a FusedStep of `engine.cpu.fused`, which not every machine can import"""
        self.fused_step = fused_step

    def prefill(self, batch: PrefillBatch) -> Tensor:
        logits: Tensor = self.fused_step(batch.token_ids, batch.positions, batch.logits_indices)
        return logits

    def decode(self, caches: list[Any], tokens: list[int]) -> Tensor:
        logits: Tensor = self.fused_step(tokens, row_lengths(caches))
        return logits


class FusedEncoderDecoder:
    """The passes of an encoder, and the steps of the decoder beside it, are each a chain of
    compiled calls; what is not fused is executed in another way."""

    mixes_prefill = False

    def __init__(self, fused_encoder: Any, fused_step: Any, otherwise: StepExecutor) -> None:
        """fused_encoder: an `engine.cpu.fused.fused_encoder.FusedEncoder`, or None
        fused_step: as in FusedExecutor, or None"""
        self.fused_encoder, self.fused_step = fused_encoder, fused_step
        self.otherwise = otherwise

    def prefill(self, batch: PrefillBatch) -> Tensor:
        if self.fused_encoder is None:
            return self.otherwise.prefill(batch)
        states: Tensor = self.fused_encoder(batch.token_ids, batch.positions, batch.spans)
        return states

    def decode(self, caches: list[Any], tokens: list[int]) -> Tensor:
        if self.fused_step is None:
            return self.otherwise.decode(caches, tokens)
        logits: Tensor = self.fused_step(tokens, row_lengths(caches))
        return logits


def row_lengths(caches: Iterable[SequenceCache]) -> list[int]:
    """The length of each row, which is the position of its newest token."""
    return [cache.length for cache in caches for _ in range(cache.num_rows)]
