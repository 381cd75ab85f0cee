"""Seq2SeqRunner: the forward passes of an encoder-decoder, by slots.

An encoder reads a prompt once; what the decoder attends to of it stays in the slot.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import EncoderDecoderCache

from engine.attention.base import Spans
from engine.attention.padded_prefill import PaddedPrefill
from engine.attention.prefill import ENCODER_MULTIPLE, chunks, filled_up, in_one_row, multiple_for
from engine.core.sequence import Sequence
from engine.kv_cache.base import KVCacheManager
from engine.kv_cache.contiguous import SequenceCache
from engine.kv_cache.hf_cache import InflightCrossCache, InflightSelfCache
from engine.runners.position_embedding import PerTokenPositionEmbedding
from engine.runners.static_step import LENGTH, TOKEN, StepInputs


class Seq2SeqRunner:
    def __init__(self, model: Any, default_start_id: int, kv_cache: KVCacheManager) -> None:
        """default_start_id: from which a decoder goes out unless its sequence says otherwise"""
        self.model = model
        self.default_start_id = default_start_id
        self.kv_cache = kv_cache
        self.cache = InflightSelfCache(kv_cache.shape, kv_cache.attention)
        self.cross = InflightCrossCache(kv_cache.shape, kv_cache.cross)
        self.both = EncoderDecoderCache(self.cache, self.cross)
        encoder, decoder = model.get_encoder(), model.get_decoder()
        self.encoder_positions = install_position_embedding(encoder)
        self.positions = install_position_embedding(decoder)
        self.relative: Any = None  # the attention that knows T5's bias
        if self.positions is None:
            self.relative = decoder.block[0].layer[0].SelfAttention
        self.crossings = crossings_of(decoder)
        self.multiple = multiple_for(model, ENCODER_MULTIPLE)
        self.static_step = kv_cache.static_step(self._step_by_inputs)
        self.captured_step = kv_cache.captured_step(self._step)

    def start_ids(self, sequence: Sequence) -> tuple[int, ...]:
        """What a row holds before its first new token."""
        start_id = sequence.decoder_start_token_id
        return (self.default_start_id if start_id is None else start_id,)

    def read(self, sequences: list[Sequence]) -> tuple[list[SequenceCache], None]:
        """Read prompts. Returns their slots, of which no row has a column yet; the first new
        token comes with the first step."""
        return [
            slot for chunk in chunks(sequences, self.model.device) for slot in self._read(chunk)
        ], None

    def _read(self, sequences: list[Sequence]) -> list[SequenceCache]:
        device = self.model.device
        prompts = [each.prompt_ids for each in sequences]
        if self.static_step is None:
            prompts = filled_up(prompts, self.multiple)
        ids, spans = in_one_row(prompts)
        spans = spans[: len(sequences)]  # without what fills them up
        place: Any = nullcontext()
        if self.encoder_positions is not None:
            positions = [at for each in prompts for at in self.encoder_positions.of_prompt(each)]
            place = self.encoder_positions.at(torch.tensor([positions], device=device))
        # A GPU attends to all of them in one call.
        together = spans if self.static_step is None else PaddedPrefill.of(spans, device) or spans
        with place:
            encoded = self.model.get_encoder()(
                input_ids=torch.tensor([ids], device=device), spans=together
            )
        slots = []
        crossed = self._crossed(encoded.last_hidden_state[0], spans)
        for sequence, mine in zip(sequences, crossed, strict=True):
            slot = self.kv_cache.new_slot(sequence.num_rows, 1 + sequence.settings.max_new_tokens)
            slot.keep_crossed(mine)
            slots.append(slot)
        return slots

    def _crossed(self, encoded: Tensor, spans: Spans) -> list[Tensor]:
        """encoded: (tokens, width); returns (layers, 2, heads, tokens, head size) of each span"""
        shape = self.kv_cache.shape
        before, after = (shape.num_layers, 2, shape.num_heads), (shape.head_size,)
        crossed = [encoded.new_empty((*before, end - begin, *after)) for begin, end in spans]
        # Layer by layer, for those of all together are as much again as what is kept.
        for layer, both in enumerate(self.crossings):
            for half, part in enumerate(both):
                made = part(encoded).view(-1, shape.num_heads, shape.head_size).transpose(0, 1)
                for mine, (begin, end) in zip(crossed, spans, strict=True):
                    mine[layer, half] = made[:, begin:end]
        return crossed

    def can_mix(self, sequences: list[Sequence]) -> bool:
        """TokenizerThread and decoder have weights of their own: nothing is gained."""
        return False

    def read_and_step(
        self, sequences: list[Sequence], slots: list[SequenceCache], tokens: list[int]
    ) -> tuple[list[SequenceCache], Tensor]:
        raise AssertionError("an encoder reads by itself")

    def step(self, slots: list[SequenceCache], tokens: list[int]) -> Tensor:
        """Read one token in each row into the column after its last, which the caller then
        counts; returns (rows, vocab) logits, good until the next step."""
        self.cache.hold(slots)
        self.cross.hold(slots)
        if self.static_step is not None:
            return self.static_step.run(slots, tokens)
        assert self.captured_step is not None
        lengths = [slot.length for slot in slots for _ in range(slot.num_rows)]
        if self.relative is not None:
            bias = self.kv_cache.attention.bias
            if bias is None or bias.shape[1] <= max(lengths):
                # For twice as many, so that it is seldom computed.
                self.kv_cache.attention.bias = self._bias(2 * max(lengths) + 64)
        return self.captured_step.run(tokens, lengths)

    def _step_by_inputs(self, inputs: StepInputs) -> Tensor:
        if self.relative is not None:
            self.kv_cache.attention.bias = self._bias(inputs.columns.shape[1])
        self.kv_cache.hold_inputs(inputs)
        return self._step(inputs.told[TOKEN], inputs.told[LENGTH])

    def _step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens, positions: (rows,); returns (rows, vocab)"""
        num_rows = len(tokens)
        self.cross.shape_rows(num_rows)
        place: Any = nullcontext()
        if self.positions is not None:
            place = self.positions.at(positions[:, None])
        # Only its shape is looked at: what was encoded is in the slots.
        encoded = torch.empty(
            (1, 1, self.model.config.hidden_size), dtype=self.model.dtype, device=tokens.device
        )
        with place:
            logits = self.model(
                encoder_outputs=(encoded.expand(num_rows, 1, -1),),
                decoder_input_ids=tokens[:, None],
                # Taken as it is, and looked at by nobody; without it the model would make one.
                decoder_attention_mask=tokens.new_ones((num_rows, 1, 1, 1), dtype=torch.bool),
                past_key_values=self.both,
                use_cache=True,
            ).logits
        return logits[:, -1]  # type: ignore[no-any-return]  # a tensor

    def _bias(self, num_columns: int) -> Tensor:
        """(heads, columns): how a row's newest token, the last, sees each before it."""
        computed = self.relative.compute_bias(1, num_columns, past_seen_tokens=num_columns - 1)
        return computed[0, :, 0].contiguous()  # type: ignore[no-any-return]  # a tensor


def install_position_embedding(stack: Any) -> PerTokenPositionEmbedding | None:
    """Put ours in the place of a stack's position embedding; None if it has none."""
    if not hasattr(stack, "embed_positions"):
        return None
    stack.embed_positions = PerTokenPositionEmbedding(stack.embed_positions)
    return stack.embed_positions  # type: ignore[no-any-return]  # what was just set


def crossings_of(decoder: Any) -> list[tuple[Any, Any]]:
    """By layer: what makes keys and values of what the encoder left."""
    if hasattr(decoder, "block"):  # T5 and its relatives
        attentions = [each.layer[1].EncDecAttention for each in decoder.block]
        return [(each.k, each.v) for each in attentions]
    return [(each.encoder_attn.k_proj, each.encoder_attn.v_proj) for each in decoder.layers]
