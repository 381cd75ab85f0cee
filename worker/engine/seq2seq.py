"""Seq2SeqRunner: the forward passes of an encoder-decoder, by slots.

An encoder reads a prompt once; what the decoder attends to of it stays in the slot.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from worker.engine.positions import RowPositions
from worker.engine.sequence import Sequence
from worker.engine.slots import CrossCache, Slot, SlotCache


class Seq2SeqRunner:
    def __init__(self, model: Any, default_start_id: int, poisoned: bool = False) -> None:
        """default_start_id: from which a decoder goes out unless its sequence says otherwise."""
        self.model = model
        self.default_start_id = default_start_id
        self.poisoned = poisoned
        decoder = model.get_decoder()
        self.positions: RowPositions | None = None
        self.relative: Any = None
        self.biases: Tensor | None = None
        if hasattr(decoder, "embed_positions"):
            self.positions = decoder.embed_positions = RowPositions(decoder.embed_positions)
            num_layers = len(decoder.layers)
        else:
            num_layers = len(decoder.block)
            self.relative = decoder.block[0].layer[0].SelfAttention
        self.cache = SlotCache(num_layers, None if self.relative is None else self.bias)
        self.cross = CrossCache(num_layers)
        self.both = EncoderDecoderCache(self.cache, self.cross)

    def start_ids(self, sequence: Sequence) -> tuple[int, ...]:
        """What a row holds before its first new token."""
        start_id = sequence.decoder_start_token_id
        return (self.default_start_id if start_id is None else start_id,)

    def prefill(self, sequences: tuple[Sequence, ...]) -> tuple[list[Slot], Tensor]:
        """Read prompts of one length. Returns their slots and (sequences, vocab) logits."""
        device = self.model.device
        ids = torch.tensor([each.prompt_ids for each in sequences], device=device)
        mask = torch.ones_like(ids)
        encoded = self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        past: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits = self.model(
            encoder_outputs=(encoded,),
            attention_mask=mask,
            decoder_input_ids=torch.tensor([self.start_ids(each) for each in sequences]).to(device),
            past_key_values=past,
            use_cache=True,
        ).logits
        slots = []
        for at, sequence in enumerate(sequences):
            slot = Slot(sequence.num_rows, self.poisoned)
            mine = slice(at, at + 1)
            for layer in past.self_attention_cache.layers:
                slot.fill(layer.keys[mine], layer.values[mine])
            for layer in past.cross_attention_cache.layers:
                slot.fill_cross(layer.keys[mine], layer.values[mine])
            slots.append(slot)
        return slots, logits[:, -1]

    def step(self, slots: list[Slot], tokens: list[int]) -> Tensor:
        """Read one token in each row into the column after its last, which the caller then
        counts; returns (rows, vocab) logits."""
        device = self.model.device
        self.cache.hold(slots)
        self.cross.slots = slots
        # Only its shape is looked at: what was encoded is in the slots.
        encoded = torch.empty(len(tokens), 1, self.model.config.hidden_size, device=device)
        if self.positions is not None:
            lengths = [slot.length for slot in slots for _ in range(slot.num_rows)]
            self.positions.positions = torch.tensor(lengths, device=device)
        try:
            logits = self.model(
                encoder_outputs=(encoded.to(self.model.dtype),),
                decoder_input_ids=torch.tensor(tokens, device=device)[:, None],
                past_key_values=self.both,
                use_cache=True,
            ).logits
        finally:
            if self.positions is not None:
                self.positions.positions = None
        return logits[:, -1]  # type: ignore[no-any-return]  # a tensor

    def bias(self, num_columns: int) -> Tensor:
        """(1, heads, 1, columns): how a row's newest token sees each of its columns."""
        if self.biases is None or self.biases.shape[-1] < num_columns:
            # For twice as many, so that it is seldom computed. The last column is the
            # token itself, however many come before.
            width = 2 * num_columns + 64
            self.biases = self.relative.compute_bias(1, width, past_seen_tokens=width - 1)
        return self.biases[..., -num_columns:]
