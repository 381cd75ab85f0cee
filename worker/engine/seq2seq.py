"""Seq2SeqRunner: the forward passes of an encoder-decoder, by slots.

An encoder reads a prompt once; what the decoder attends to of it stays in the slot.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import EncoderDecoderCache

from worker.engine.caches import CrossCache, SlotCache
from worker.engine.positions import RowPositions
from worker.engine.probing import decoder_shape
from worker.engine.reading import chunks, in_one_row
from worker.engine.row_attention import row_attention
from worker.engine.sequence import Sequence
from worker.engine.slots import Slot


class Seq2SeqRunner:
    def __init__(self, model: Any, default_start_id: int, poisoned: bool = False) -> None:
        """default_start_id: from which a decoder goes out unless its sequence says otherwise
        poisoned: memory that must not be read is NaN; for tests"""
        self.model = model
        self.default_start_id = default_start_id
        self.poisoned = poisoned
        self.shape = decoder_shape(model)
        self.attention = row_attention(self.shape, is_cross=False)
        self.cache = SlotCache(self.shape, self.attention)
        self.cross = CrossCache(self.shape, row_attention(self.shape, is_cross=True))
        self.both = EncoderDecoderCache(self.cache, self.cross)
        encoder, decoder = model.get_encoder(), model.get_decoder()
        self.encoder_positions = own_positions(encoder)
        self.positions = own_positions(decoder)
        self.relative: Any = None  # the attention that knows T5's bias
        if self.positions is None:
            self.relative = decoder.block[0].layer[0].SelfAttention
        self.crossings = crossings_of(decoder)

    def start_ids(self, sequence: Sequence) -> tuple[int, ...]:
        """What a row holds before its first new token."""
        start_id = sequence.decoder_start_token_id
        return (self.default_start_id if start_id is None else start_id,)

    def read(self, sequences: list[Sequence]) -> tuple[list[Slot], None]:
        """Read prompts. Returns their slots, of which no row has a column yet; the first new
        token comes with the first step."""
        return [slot for chunk in chunks(sequences) for slot in self._read(chunk)], None

    def _read(self, sequences: list[Sequence]) -> list[Slot]:
        device = self.model.device
        prompts = [each.prompt_ids for each in sequences]
        ids, spans = in_one_row(prompts)
        place: Any = nullcontext()
        if self.encoder_positions is not None:
            positions = [at for each in prompts for at in self.encoder_positions.of_prompt(each)]
            place = self.encoder_positions.at(torch.tensor([positions], device=device))
        with place:
            encoded = self.model.get_encoder()(input_ids=ids.to(device), spans=spans)
        slots = []
        crossed = self._crossed(encoded.last_hidden_state[0])
        for sequence, (begin, end) in zip(sequences, spans, strict=True):
            slot = Slot(self.shape, sequence.num_rows, self.attention.by_ancestors, self.poisoned)
            # A copy, for the rest of the row belongs to others who leave at another time.
            slot.crossed = crossed[:, :, :, begin:end].contiguous()
            slots.append(slot)
        return slots

    def _crossed(self, encoded: Tensor) -> Tensor:
        """encoded: (tokens, width); returns (layers, 2, heads, tokens, head size)"""
        shape = self.shape
        projected = torch.stack([part(encoded) for both in self.crossings for part in both])
        sizes = (shape.num_layers, 2, len(encoded), shape.num_heads, shape.head_size)
        return projected.view(sizes).transpose(2, 3)

    def step(self, slots: list[Slot], tokens: list[int]) -> Tensor:
        """Read one token in each row into the column after its last, which the caller then
        counts; returns (rows, vocab) logits."""
        device = self.model.device
        self.cache.hold(slots)
        self.cross.hold(slots)
        if self.relative is not None:
            self.attention.bias = self._bias(max(slot.length for slot in slots) + 1)
        place: Any = nullcontext()
        if self.positions is not None:
            lengths = [slot.length for slot in slots for _ in range(slot.num_rows)]
            place = self.positions.at(torch.tensor(lengths, device=device)[:, None])
        # Only its shape is looked at: what was encoded is in the slots.
        encoded = torch.empty(1, 1, self.model.config.hidden_size, device=device)
        with place:
            logits = self.model(
                encoder_outputs=(encoded.to(self.model.dtype).expand(len(tokens), 1, -1),),
                decoder_input_ids=torch.tensor(tokens, device=device)[:, None],
                past_key_values=self.both,
                use_cache=True,
            ).logits
        return logits[:, -1]  # type: ignore[no-any-return]  # a tensor

    def _bias(self, num_columns: int) -> Tensor:
        """(heads, columns or more): how a row's newest token, the last, sees each before it."""
        bias = self.attention.bias
        if bias is None or bias.shape[-1] < num_columns:
            # For twice as many, so that it is seldom computed.
            width = 2 * num_columns + 64
            computed = self.relative.compute_bias(1, width, past_seen_tokens=width - 1)
            bias = computed[0, :, 0].contiguous()
        return bias


def own_positions(stack: Any) -> RowPositions | None:
    """Put ours in the place of a stack's position embedding; None if it has none."""
    if not hasattr(stack, "embed_positions"):
        return None
    stack.embed_positions = RowPositions(stack.embed_positions)
    return stack.embed_positions  # type: ignore[no-any-return]  # what was just set


def crossings_of(decoder: Any) -> list[tuple[Any, Any]]:
    """By layer: what makes keys and values of what the encoder left."""
    if hasattr(decoder, "block"):  # T5 and its relatives
        attentions = [each.layer[1].EncDecAttention for each in decoder.block]
        return [(each.k, each.v) for each in attentions]
    return [(each.encoder_attn.k_proj, each.encoder_attn.v_proj) for each in decoder.layers]
