"""Seq2SeqRunner: the forward passes of an encoder-decoder.

The encoder runs once for a prompt and for all equal ones while one of them runs. The keys and
values that cross-attention projects from its output stay in the caches of the sequences.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from engine.attention.base import Spans
from engine.attention.forward_context import DecoderContext, EncoderContext, attending
from engine.attention.layers import cross_projections_of, unused_mask, windows_of
from engine.attention.prefill import (
    ENCODER_TOKEN_MULTIPLE,
    chunks,
    concatenated,
    padded_to_multiple,
    token_multiple_for,
)
from engine.attention.selection import attention_for
from engine.core.sequence import Sequence
from engine.kv_cache.base import SequenceCache, WindowedKVCache
from engine.kv_cache.encoded import Encoded, EncodedPrompts
from engine.kv_cache.hf_cache import EncodedPlaceholder, PassThroughCache
from engine.runners.base import NONE_BEGUN
from engine.runners.position_embedding import install_position_embedding
from engine.runners.selection import executor_for
from engine.runners.step_executor import PrefillBatch


class Seq2SeqRunner:
    def __init__(self, model: Any, default_start_id: int, kv_cache: WindowedKVCache) -> None:
        """model:            has `attention.hf_plugin` installed
        default_start_id: the decoder's first token, unless a sequence names another
        """
        self.model = model
        self.default_start_id = default_start_id
        self.kv_cache = kv_cache
        self.attention = attention_for(kv_cache)
        self.cross_attention = attention_for(kv_cache, is_cross=True)
        self.encoded_prompts: EncodedPrompts[Any] = EncodedPrompts()
        self.encoded = EncodedPlaceholder(kv_cache.shape)
        self.past_key_values = EncoderDecoderCache(PassThroughCache(kv_cache.shape), self.encoded)
        encoder, decoder = model.get_encoder(), model.get_decoder()
        self.encoder_positions = install_position_embedding(encoder)
        self.decoder_positions = install_position_embedding(decoder)
        # Models with rotary positions are told them.
        self.encoder_takes_positions = takes(encoder, "position_ids")
        self.takes_positions = takes(model, "decoder_position_ids")
        if hasattr(decoder, "block"):  # T5 and its relatives have a bias instead
            self.first_attention = decoder.block[0].layer[0].SelfAttention
            self.attention.compute_bias = self._compute_bias
        self.cross_projections = cross_projections_of(decoder)
        self.token_multiple = token_multiple_for(model, ENCODER_TOKEN_MULTIPLE)
        self.refresh()

    def refresh(self) -> None:
        """Read the windows again, after the configuration changed. No sequence may be running."""
        self.attention.windows = windows_of(self.model)
        self.kv_cache.set_windows(self.attention.windows)
        self.executor = executor_for(
            self.model, self._decode_forward, self._encode, self.attention, self.cross_attention
        )

    def start_ids(self, sequence: Sequence) -> tuple[int, ...]:
        """The tokens of a row before its first new token."""
        start_id = sequence.decoder_start_token_id
        return (self.default_start_id if start_id is None else start_id,)

    def prefill(
        self, sequences: list[Sequence], begun: Mapping[int, SequenceCache] = NONE_BEGUN
    ) -> tuple[list[SequenceCache], None]:
        """Encode prompts, equal ones once. Returns their caches, whose rows have no token yet.

        The logits of the first new token come from the first decode step.
        """
        fresh = {each.prompt_ids: each for each in sequences if not self._find(each)}
        keys_values = {
            prompt: each
            for chunk in chunks(list(fresh.values()), self.model.device)
            for prompt, each in self._prefill(chunk).items()
        }
        return [self._new_cache(each, keys_values) for each in sequences], None

    def _find(self, sequence: Sequence) -> Encoded[Any] | None:
        return self.encoded_prompts.find(sequence.prompt_ids)

    def _new_cache(
        self, sequence: Sequence, keys_values: dict[tuple[int, ...], Tensor]
    ) -> SequenceCache:
        """Return the cache of a sequence with its encoder's output.

        keys_values: by prompt, for prompts that no cache holds yet
        """
        max_tokens = 1 + sequence.settings.max_new_tokens
        cache = self.kv_cache.new_sequence(sequence.num_rows, max_tokens)
        encoded = self._find(sequence)
        if encoded is None:
            encoded = cache.write_encoded(keys_values.pop(sequence.prompt_ids))
            self.encoded_prompts.add(sequence.prompt_ids, encoded)
        else:
            cache.share_encoded(encoded)
        return cache

    def prefill_and_decode(
        self,
        sequences: list[Sequence],
        caches: list[SequenceCache],
        tokens: list[int],
        begun: Mapping[int, SequenceCache] = NONE_BEGUN,
    ) -> None:
        """Return None: encoder and decoder share no weights, so one pass gains nothing."""

    def _prefill(self, sequences: list[Sequence]) -> dict[tuple[int, ...], Tensor]:
        """Return the keys and values of cross-attention, by prompt."""
        prompts = padded_to_multiple([each.prompt_ids for each in sequences], self.token_multiple)
        ids, spans = concatenated(prompts)
        spans = spans[: len(sequences)]  # without the padding
        positions: list[int] = []
        if self.encoder_positions is not None:
            positions = [at for each in prompts for at in self.encoder_positions.of_prompt(each)]
        elif self.encoder_takes_positions:
            positions = [at for each in prompts for at in range(len(each))]
        encoded = self.executor.prefill(PrefillBatch(ids, positions, spans))
        return dict(zip(prompts[: len(sequences)], self._project(encoded, spans), strict=True))

    def _encode(self, batch: PrefillBatch) -> Tensor:
        device = self.model.device
        prompts = self.attention.prompt_attention(batch.spans, len(batch.token_ids))
        embedded: Any = nullcontext()
        own: dict[str, Tensor] = {}
        if self.encoder_positions is not None:
            embedded = self.encoder_positions.at(torch.tensor([batch.positions], device=device))
        elif self.encoder_takes_positions:
            own["position_ids"] = torch.tensor([batch.positions], device=device)
            own["attention_mask"] = unused_mask(1, device)
        with embedded, attending(EncoderContext(prompts)):
            states: Tensor = self.model.get_encoder()(
                input_ids=torch.tensor([batch.token_ids], device=device), **own
            ).last_hidden_state
        return states[0]

    def _project(self, encoded: Tensor, spans: Spans) -> list[Tensor]:
        """Project the encoder's output to the keys and values of cross-attention.

        encoded: (tokens, width)
        returns: (layers, 2, heads, tokens, head size) for each span
        """
        shape = self.kv_cache.shape
        before, after = (shape.num_layers, 2, shape.num_heads), (shape.head_size,)
        projected = [encoded.new_empty((*before, end - begin, *after)) for begin, end in spans]
        # Layer by layer: those of all layers at once would take as much memory again.
        for layer, both in enumerate(self.cross_projections):
            for half, project in enumerate(both):
                row = project(encoded).view(-1, shape.num_heads, shape.head_size).transpose(0, 1)
                for mine, (begin, end) in zip(projected, spans, strict=True):
                    mine[layer, half] = row[:, begin:end]
        return projected

    def decode(self, caches: list[SequenceCache], tokens: list[int]) -> Tensor:
        """Run a decode step: write the newest token of each row, and return the logits of the next.

        The caller counts the tokens as written. Returns (rows, vocab), valid until the next call.
        """
        self.attention.prepare(caches, [], ())
        self.cross_attention.prepare(caches, [], ())
        return self.executor.decode(caches, tokens)

    def _decode_forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        num_rows = len(tokens)
        context = DecoderContext(
            self.attention,
            cross_attention=self.cross_attention,
            encoded_keys=self.encoded.resize(num_rows),
        )
        # Only its shape matters: cross-attention reads the caches.
        width = self.cross_projections[0][0].in_features
        encoded = torch.empty((1, 1, width), dtype=self.model.dtype, device=tokens.device)
        embedded: Any = nullcontext()
        if self.decoder_positions is not None:
            embedded = self.decoder_positions.at(positions[:, None])
        own = {"decoder_position_ids": positions[:, None]} if self.takes_positions else {}
        with embedded, attending(context):
            logits: Tensor = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded.expand(num_rows, 1, -1)),
                decoder_input_ids=tokens[:, None],
                decoder_attention_mask=unused_mask(num_rows, tokens.device),
                past_key_values=self.past_key_values,
                use_cache=True,
                **own,
            ).logits
        return logits[:, -1]

    def _compute_bias(self, num_tokens: int) -> Tensor:
        """See `attention.base.ComputeBias`."""
        bias: Tensor = self.first_attention.compute_bias(
            1, num_tokens, past_seen_tokens=num_tokens - 1
        )
        return bias[0, :, 0].contiguous()


def takes(module: Any, name: str) -> bool:
    return name in inspect.signature(module.forward).parameters
