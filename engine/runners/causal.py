"""CausalRunner: the forward passes of a decoder-only model."""

from __future__ import annotations

from collections.abc import Sequence as Some
from typing import Any

import torch
from torch import Tensor

from engine.attention.forward_context import DecoderContext, attending
from engine.attention.layers import unused_mask, windows_of
from engine.attention.prefill import (
    TOKEN_MULTIPLE,
    chunks,
    concatenated,
    padded_to_multiple,
    token_multiple_for,
)
from engine.attention.selection import attention_for
from engine.core.sequence import Sequence
from engine.kv_cache.base import KVCacheManager, SequenceCache
from engine.runners.selection import executor_for
from engine.runners.step_executor import PrefillBatch, row_lengths


class CausalRunner:
    def __init__(self, model: Any, kv_cache: KVCacheManager) -> None:
        """model: attends by `attention.hf_plugin`"""
        self.model = model
        self.kv_cache = kv_cache
        self.attention = attention_for(kv_cache)
        self.decode_context = DecoderContext(self.attention)
        self.token_multiple = token_multiple_for(model, TOKEN_MULTIPLE)
        self.refresh()

    def refresh(self) -> None:
        """Look at the model anew, whose windows may have changed. No sequence runs."""
        self.attention.windows = windows_of(self.model)
        self.executor = executor_for(
            self.model, self._decode_forward, self._prefill_forward, self.attention
        )

    @staticmethod
    def start_ids(sequence: Sequence) -> tuple[int, ...]:
        """The tokens of a row before the first new one."""
        return sequence.prompt_ids

    def prefill(self, sequences: list[Sequence]) -> tuple[list[SequenceCache], Tensor]:
        """Compute prompts. Returns their caches, and the logits of each first new token:
        (sequences, vocab)."""
        done = [
            (caches, logits.clone())  # the next chunk's may come in their place
            for caches, logits in map(self._prefill, chunks(sequences, self.model.device))
        ]
        logits = torch.cat([each for _, each in done])
        return [cache for caches, _ in done for cache in caches], logits

    def prefill_and_decode(
        self, sequences: list[Sequence], caches: list[SequenceCache], tokens: list[int]
    ) -> tuple[list[SequenceCache], Tensor] | None:
        """`prefill` and `decode` in one forward pass, which reads the weights once. Returns the
        caches of the prompts, and the logits of the step and then of the prompts:
        (rows + sequences, vocab). None if it takes more than one pass."""
        if not self.executor.mixes_prefill or len(chunks(sequences, self.model.device)) > 1:
            return None
        return self._prefill(sequences, caches, tokens)

    def _prefill(
        self,
        sequences: list[Sequence],
        decoding: Some[SequenceCache] = (),
        tokens: Some[int] = (),
    ) -> tuple[list[SequenceCache], Tensor]:
        num_decode = len(tokens)
        prompts = padded_to_multiple(
            [each.prompt_ids for each in sequences], self.token_multiple, num_decode
        )
        ids, spans = concatenated(prompts)
        spans = spans[: len(sequences)]  # without the padding
        caches = [
            self.kv_cache.new_sequence(
                each.num_rows, len(each.prompt_ids) + each.settings.max_new_tokens
            )
            for each in sequences
        ]
        self.attention.prepare(list(decoding), caches, spans)
        last_tokens = (num_decode + end - 1 for _, end in spans)
        logits = self.executor.prefill(
            PrefillBatch(
                token_ids=[*tokens, *ids],
                positions=[
                    *row_lengths(decoding),
                    *(position for each in prompts for position in range(len(each))),
                ],
                spans=spans,
                num_decode_tokens=num_decode,
                logits_indices=(*range(num_decode), *last_tokens),
            )
        )
        for each, (begin, end) in zip(caches, spans, strict=True):
            each.commit_prompt(end - begin)
        return caches, logits

    def decode(self, caches: list[SequenceCache], tokens: list[int]) -> Tensor:
        """Compute a step: store the newest token of each row, which the caller then counts, and
        return the logits of the next, (rows, vocab), good until the next call."""
        self.attention.prepare(caches, [], ())
        return self.executor.decode(caches, tokens)

    def _prefill_forward(self, batch: PrefillBatch) -> Tensor:
        device = self.model.device
        num_prompt_tokens = len(batch.token_ids) - batch.num_decode_tokens
        indices = torch.tensor(batch.logits_indices, device=device)
        context = DecoderContext(
            self.attention,
            self.attention.prompt_attention(batch.spans, num_prompt_tokens),
            batch.num_decode_tokens,
        )
        with attending(context):
            logits: Tensor = self.model(
                torch.tensor([batch.token_ids], device=device),
                position_ids=torch.tensor([batch.positions], device=device),
                attention_mask=unused_mask(1, device),
                use_cache=False,
                logits_to_keep=indices,
            ).logits
        return logits[0]

    def _decode_forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        with attending(self.decode_context):
            logits: Tensor = self.model(
                tokens[:, None],
                position_ids=positions[:, None],
                attention_mask=unused_mask(len(tokens), tokens.device),
                use_cache=False,
            ).logits
        return logits[:, -1]
