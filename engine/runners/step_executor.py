"""StepExecutor: how a runner's forward passes are executed; `selection.py` chooses one at load.

The eager executor calls the model as it is written, and the fused ones, also in this file, run one
chain of compiled calls. `captured_step.py` replays captured calls on a CPU, and `graph_executor.py`
replays CUDA graphs.
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
    """One row of tokens: those of a decode step, if any, and then those of prompts."""

    token_ids: list[int]
    positions: list[int]
    spans: Spans  # of the prompts, counted from the first token of the first
    num_decode_tokens: int = 0
    logits_indices: tuple[int, ...] = ()  # tokens whose logits are requested


PrefillForward = Callable[[PrefillBatch], Tensor]
"""To the (requested, vocab) logits of a decoder, or the (tokens, width) states of an encoder."""


class StepExecutor(Protocol):
    """Executes forward passes. The attention backends must be prepared before each call."""

    mixes_prefill: bool
    """Whether `prefill` may have tokens of a decode step before its prompts."""

    def prefill(self, batch: PrefillBatch) -> Tensor:
        """Run a prefill; see PrefillForward. The result is valid until the next call."""

    def decode(self, caches: list[Any], tokens: list[int]) -> Tensor:
        """Run a decode step for the sequences for which the attention is prepared.

        tokens:  the newest token of each row
        returns: logits, (rows, vocab), valid until the next call
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
    """Executes every pass as one chain of compiled calls."""

    mixes_prefill = True

    def __init__(self, fused_step: Any) -> None:
        """fused_step: an `engine.cpu.fused` FusedStep, which cannot be imported on every machine"""
        self.fused_step = fused_step

    def prefill(self, batch: PrefillBatch) -> Tensor:
        logits: Tensor = self.fused_step(batch.token_ids, batch.positions, batch.logits_indices)
        return logits

    def decode(self, caches: list[Any], tokens: list[int]) -> Tensor:
        logits: Tensor = self.fused_step(tokens, row_lengths(caches))
        return logits


class FusedEncoderDecoder:
    """Executes the encoder's passes and the decoder's steps each as a chain of compiled calls.

    If only one of them can be fused, `otherwise` executes the other.
    """

    mixes_prefill = False

    def __init__(self, fused_encoder: Any, fused_step: Any, otherwise: StepExecutor) -> None:
        """fused_encoder: an `engine.cpu.fused` FusedEncoder, or None
        fused_step:    an `engine.cpu.fused` FusedStep, or None
        """
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
    """The length of each row, which is also the position of its newest token."""
    return [cache.length for cache in caches for _ in range(cache.num_rows)]
