"""CausalRunner: the forward passes of a decoder-only model, by slots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worker.engine.caches import SlotCache
from worker.engine.probing import decoder_shape
from worker.engine.reading import chunks, in_one_row
from worker.engine.row_attention import row_attention
from worker.engine.sequence import Sequence
from worker.engine.slots import Slot


class CausalRunner:
    def __init__(self, model: Any, poisoned: bool = False) -> None:
        """poisoned: memory that must not be read is NaN; for tests"""
        self.model = model
        self.poisoned = poisoned
        self.shape = decoder_shape(model)
        self.attention = row_attention(self.shape, is_cross=False)
        self.cache = SlotCache(self.shape, self.attention)

    @staticmethod
    def start_ids(sequence: Sequence) -> tuple[int, ...]:
        """What a row holds before its first new token."""
        return sequence.prompt_ids

    def read(self, sequences: list[Sequence]) -> tuple[list[Slot], Tensor]:
        """Read prompts. Returns their slots, and the logits of the first new tokens:
        (sequences, vocab)."""
        read = [self._read(chunk) for chunk in chunks(sequences)]
        return [slot for slots, _ in read for slot in slots], torch.cat([each for _, each in read])

    def _read(self, sequences: list[Sequence]) -> tuple[list[Slot], Tensor]:
        device = self.model.device
        prompts = [each.prompt_ids for each in sequences]
        ids, spans = in_one_row(prompts)
        positions = [position for each in prompts for position in range(len(each))]
        slots = [
            Slot(self.shape, each.num_rows, self.attention.by_ancestors, self.poisoned)
            for each in sequences
        ]
        self.cache.hold_prompts(slots, spans)
        logits = self.model(
            ids.to(device),
            position_ids=torch.tensor([positions], device=device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=torch.tensor([end - 1 for _, end in spans], device=device),
            spans=spans,
        ).logits
        for slot, (begin, end) in zip(slots, spans, strict=True):
            slot.filled(end - begin)
        return slots, logits[0]

    def step(self, slots: list[Slot], tokens: list[int]) -> Tensor:
        """Read one token in each row into the column after its last, which the caller then
        counts; returns (rows, vocab) logits."""
        device = self.model.device
        positions = [slot.length for slot in slots for _ in range(slot.num_rows)]
        self.cache.hold(slots)
        logits = self.model(
            torch.tensor(tokens, device=device)[:, None],
            position_ids=torch.tensor(positions, device=device)[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        return logits[:, -1]  # type: ignore[no-any-return]  # a tensor
