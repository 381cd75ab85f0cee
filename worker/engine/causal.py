"""CausalRunner: the forward passes of a decoder-only model, by slots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from worker.engine.sequence import Sequence
from worker.engine.slots import Slot, SlotCache


class CausalRunner:
    def __init__(self, model: Any, poisoned: bool = False) -> None:
        self.model = model
        self.poisoned = poisoned
        self.cache = SlotCache(model.config.num_hidden_layers)

    @staticmethod
    def start_ids(sequence: Sequence) -> tuple[int, ...]:
        """What a row holds before its first new token."""
        return sequence.prompt_ids

    def prefill(self, sequences: tuple[Sequence, ...]) -> tuple[list[Slot], Tensor]:
        """Read prompts of one length. Returns their slots and (sequences, vocab) logits."""
        ids = torch.tensor([each.prompt_ids for each in sequences], device=self.model.device)
        past: Any = DynamicCache()
        logits = self.model(ids, past_key_values=past, use_cache=True, logits_to_keep=1).logits
        slots = []
        for at, sequence in enumerate(sequences):
            slot = Slot(sequence.num_rows, self.poisoned)
            for layer in past.layers:
                slot.fill(layer.keys[at : at + 1], layer.values[at : at + 1])
            slots.append(slot)
        return slots, logits[:, -1]

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
