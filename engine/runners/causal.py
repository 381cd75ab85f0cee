"""CausalRunner: the forward passes of a decoder-only model."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Some
from dataclasses import dataclass, replace
from typing import Any, cast

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
from engine.kv_cache.base import PrefixSequenceCache, SequenceCache, WindowedKVCache
from engine.kv_cache.layer_group import SLICE_TOKENS
from engine.runners.base import NONE_BEGUN
from engine.runners.selection import executor_for
from engine.runners.step_executor import PrefillBatch, row_lengths


@dataclass(frozen=True, slots=True)
class PromptSlice:
    """The tokens of a prompt that a step reads: from the end of its cache up to `end`."""

    sequence: Sequence
    cache: SequenceCache
    end: int

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.sequence.prompt_ids[self.cache.length : self.end]


class CausalRunner:
    def __init__(self, model: Any, kv_cache: WindowedKVCache) -> None:
        """model: has `attention.hf_plugin` installed"""
        self.model = model
        self.kv_cache = kv_cache
        self.attention = attention_for(kv_cache)
        self.decode_context = DecoderContext(self.attention)
        self.token_multiple = token_multiple_for(model, TOKEN_MULTIPLE)
        self.refresh()

    def refresh(self) -> None:
        """Read the windows again, after the configuration changed. No sequence may be running."""
        self.attention.windows = windows_of(self.model)
        self.kv_cache.set_windows(self.attention.windows)
        self.executor = executor_for(
            self.model, self._decode_forward, self._prefill_forward, self.attention
        )

    @staticmethod
    def start_ids(sequence: Sequence) -> tuple[int, ...]:
        """The tokens of a row before its first new token."""
        return sequence.prompt_ids

    def prefill(
        self, sequences: list[Sequence], begun: Mapping[int, SequenceCache] = NONE_BEGUN
    ) -> tuple[list[SequenceCache], Tensor]:
        """Read each prompt up to its sequence's `num_read_tokens`.

        Returns the caches, and the logits of the token after each prompt: (sequences, vocab).
        """
        slices = [self._slice_of(each, begun) for each in sequences]
        if self.attention.windows:
            for each in slices:
                self._read_ahead(each)
        done = [
            self._prefill(each).clone()  # the next chunk may overwrite it
            for each in chunks(slices, self.model.device)
        ]
        return [each.cache for each in slices], torch.cat(done)

    def prefill_and_decode(
        self,
        sequences: list[Sequence],
        caches: list[SequenceCache],
        tokens: list[int],
        begun: Mapping[int, SequenceCache] = NONE_BEGUN,
    ) -> tuple[list[SequenceCache], Tensor] | None:
        """Prefill and decode in one forward pass, which reads the weights once.

        Returns the caches of the prompts, and the logits of the step and then of the prompts: (rows
        + sequences, vocab). Returns None if it would take more than one pass.
        """
        if not self.executor.mixes_prefill:
            return None
        slices = [self._slice_of(each, begun) for each in sequences]
        if len(chunks(slices, self.model.device)) > 1:
            for each in slices:
                if each.sequence.id not in begun:
                    each.cache.clear()
            return None
        return [each.cache for each in slices], self._prefill(slices, caches, tokens)

    def _slice_of(self, sequence: Sequence, begun: Mapping[int, SequenceCache]) -> PromptSlice:
        end = sequence.num_read_tokens
        end = len(sequence.prompt_ids) if end is None else end
        cache = begun.get(sequence.id)
        if cache is None:
            max_tokens = len(sequence.prompt_ids) + sequence.settings.max_new_tokens
            cache = self.kv_cache.new_sequence(sequence.num_rows, max_tokens)
            if sequence.blocks is not None:
                cast(PrefixSequenceCache, cache).take_prefix(sequence.blocks)
        if cache.length >= end:
            # An earlier step failed after reading this far. The last token is computed again for
            # its logits.
            cache.commit_prompt(end - 1)
        return PromptSlice(sequence, cache, end)

    def _read_ahead(self, whole: PromptSlice) -> None:
        """Read all but the last part of a long slice in parts, so that windows stay small."""
        while len(whole.prompt_ids) > SLICE_TOKENS:
            self._prefill([replace(whole, end=whole.cache.length + SLICE_TOKENS)])

    def _prefill(
        self,
        slices: list[PromptSlice],
        decoding: Some[SequenceCache] = (),
        tokens: Some[int] = (),
    ) -> Tensor:
        num_decode = len(tokens)
        prompts = padded_to_multiple(
            [each.prompt_ids for each in slices], self.token_multiple, num_decode
        )
        ids, spans = concatenated(prompts)
        spans = spans[: len(slices)]  # without the padding
        starts = [each.cache.length for each in slices] + [0] * (len(prompts) - len(slices))
        self.attention.prepare(list(decoding), [each.cache for each in slices], spans)
        last_tokens = (num_decode + end - 1 for _, end in spans)
        logits = self.executor.prefill(
            PrefillBatch(
                token_ids=[*tokens, *ids],
                positions=[
                    *row_lengths(decoding),
                    *(
                        position
                        for start, each in zip(starts, prompts, strict=True)
                        for position in range(start, start + len(each))
                    ),
                ],
                spans=spans,
                num_decode_tokens=num_decode,
                logits_indices=(*range(num_decode), *last_tokens),
            )
        )
        for each in slices:
            each.cache.commit_prompt(each.end)
            if each.sequence.blocks is not None:
                cast(PrefixSequenceCache, each.cache).keep_prefix(each.sequence.blocks)
        return logits

    def decode(self, caches: list[SequenceCache], tokens: list[int]) -> Tensor:
        """Run a decode step: write the newest token of each row, and return the logits of the next.

        The caller counts the tokens as written. Returns (rows, vocab), valid until the next call.
        """
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
