"""CausalRunner: the forward passes of a decoder-only model, by slots."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from engine.attention.base import Spans
from engine.attention.padded_prefill import PaddedPrefill
from engine.attention.prefill import MULTIPLE, chunks, filled_up, in_one_row, multiple_for
from engine.core.sequence import Sequence
from engine.cpu.attention_backend import CpuAttentionBackend
from engine.cpu.self_test import kernel_module
from engine.kv_cache.base import KVCacheManager
from engine.kv_cache.contiguous import SequenceCache
from engine.kv_cache.hf_cache import InflightSelfCache
from engine.runners.static_step import LENGTH, TOKEN, StepInputs

Ints = list[int] | tuple[int, ...]


class CausalRunner:
    def __init__(self, model: Any, kv_cache: KVCacheManager) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.cache = InflightSelfCache(kv_cache.shape, kv_cache.attention)
        self.fused_step = self._fused_step()
        self.multiple = multiple_for(model, MULTIPLE)
        self.static_step = kv_cache.static_step(self._step_by_inputs)
        self.captured_step = kv_cache.captured_step(self._step)

    def _fused_step(self) -> Any:
        """Return the compiled step of the whole model, or None where it does not serve."""
        if not isinstance(self.kv_cache.attention, CpuAttentionBackend):
            return None
        module = kernel_module("fused_step")
        return module and module.fused_step_for(self.model, self.kv_cache.attention)

    @staticmethod
    def start_ids(sequence: Sequence) -> tuple[int, ...]:
        """What a row holds before its first new token."""
        return sequence.prompt_ids

    def read(self, sequences: list[Sequence]) -> tuple[list[SequenceCache], Tensor]:
        """Read prompts. Returns their slots, and the logits of the first new tokens:
        (sequences, vocab)."""
        read = [
            (slots, logits.clone())  # the next chunk's may come in their place
            for slots, logits in map(self._read, chunks(sequences, self.model.device))
        ]
        return [slot for slots, _ in read for slot in slots], torch.cat([each for _, each in read])

    def can_mix(self, sequences: list[Sequence]) -> bool:
        """Whether `read_and_step` can read their prompts."""
        return self.static_step is None and len(chunks(sequences, self.model.device)) == 1

    def read_and_step(
        self, sequences: list[Sequence], slots: list[SequenceCache], tokens: list[int]
    ) -> tuple[list[SequenceCache], Tensor]:
        """Both at once, so that the weights are read once. Returns the slots of the prompts, and
        logits: (rows + sequences, vocab)."""
        self.cache.hold(slots)
        lengths = [slot.length for slot in slots for _ in range(slot.num_rows)]
        return self._read(sequences, tokens, lengths)

    def _read(
        self, sequences: list[Sequence], tokens: Ints = (), lengths: Ints = ()
    ) -> tuple[list[SequenceCache], Tensor]:
        """tokens, lengths: of rows that go on, if any; they come before the prompts"""
        prompts = [each.prompt_ids for each in sequences]
        if self.static_step is None:
            prompts = filled_up(prompts, self.multiple, len(tokens))
        ids, spans = in_one_row(prompts)
        spans = spans[: len(sequences)]  # without what fills them up
        ids = [*tokens, *ids]
        positions = [*lengths, *(position for each in prompts for position in range(len(each)))]
        slots = [
            self.kv_cache.new_slot(
                each.num_rows, len(each.prompt_ids) + each.settings.max_new_tokens
            )
            for each in sequences
        ]
        self.cache.hold_prompts(slots, spans, len(tokens))
        asked = [*range(len(tokens)), *(len(tokens) + end - 1 for _, end in spans)]
        if self.fused_step is not None:
            logits = self.fused_step(ids, positions, asked)
        else:
            logits = self._logits(ids, positions, asked, spans)
        for slot, (begin, end) in zip(slots, spans, strict=True):
            slot.filled(end - begin)
        return slots, logits

    def _logits(self, ids: Ints, positions: Ints, asked: Ints, spans: Spans) -> Tensor:
        """(asked, vocab), of tokens that go on and of prompts after them."""
        device = self.model.device
        # A GPU attends to all of them in one call.
        together: Spans | PaddedPrefill = spans
        if self.static_step is not None:
            together = PaddedPrefill.of(spans, device) or spans
        return self.model(  # type: ignore[no-any-return]  # a tensor
            torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            attention_mask=unseen_mask(1, device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=torch.tensor(asked, device=device),
            spans=together,
        ).logits[0]

    def step(self, slots: list[SequenceCache], tokens: list[int]) -> Tensor:
        """Read one token in each row into the column after its last, which the caller then
        counts; returns (rows, vocab) logits, good until the next step."""
        self.cache.hold(slots)
        if self.static_step is not None:
            return self.static_step.run(slots, tokens)
        lengths = [slot.length for slot in slots for _ in range(slot.num_rows)]
        if self.fused_step is not None:
            return self.fused_step(tokens, lengths)  # type: ignore[no-any-return]  # a module
        assert self.captured_step is not None
        return self.captured_step.run(tokens, lengths)

    def _step_by_inputs(self, inputs: StepInputs) -> Tensor:
        self.kv_cache.hold_inputs(inputs)
        return self._step(inputs.told[TOKEN], inputs.told[LENGTH])

    def _step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens, positions: (rows,); returns (rows, vocab)"""
        logits = self.model(
            tokens[:, None],
            position_ids=positions[:, None],
            attention_mask=unseen_mask(len(tokens), tokens.device),
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        return logits[:, -1]  # type: ignore[no-any-return]  # a tensor


@cache
def unseen_mask(num_rows: int, device: torch.device) -> Tensor:
    """Taken by a model as it is, and looked at by nobody; without it the model makes one."""
    return torch.ones((num_rows, 1, 1, 1), dtype=torch.bool, device=device)
