"""PagedAttentionBackend: all rows of a step attend in one call, through a paged cache's tables."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.attention.base import AttentionBackend, ComputeBias, PromptAttention, Scoring, Spans
from engine.attention.prompt_attention import (
    PaddedPrompts,
    SeparatePrompts,
    attend_masked,
    starts_of,
    starts_seen,
)
from engine.kv_cache.paged import BLANK, PagedKVCache, PagedSequenceCache


class PagedAttentionBackend(AttentionBackend):
    def __init__(self, kv_cache: PagedKVCache, is_cross: bool) -> None:
        """is_cross: whether rows attend to the encoder's output"""
        self.kv_cache: PagedKVCache = kv_cache
        self.is_cross = is_cross
        self.compute_bias: ComputeBias | None = None
        self.windows: tuple[int | None, ...] = ()
        # Of a step, for each group of layers:
        self.read_slots: list[Tensor] = []  # (rows * tokens,), within the window
        self.masks: list[Tensor] = []  # (rows, 1 or query heads, 1, tokens)
        self.written_slots: Tensor | None = None  # (groups, rows)
        # Of prompts:
        self.prompt_slots: Tensor | None = None  # (groups, tokens)
        self.starts: tuple[int, ...] = ()  # tokens of each prompt that are in its cache
        # For each group, if some prompts are partly read: (tokens of whole prompts in its window,)
        self.key_slots: list[Tensor] = []

    def prepare(
        self,
        decoding: Sequence[PagedSequenceCache],
        admitted: Sequence[PagedSequenceCache] = (),
        spans: Spans = (),
    ) -> None:
        """Reserve memory.

        The step's tensors are set by `prepare_rows`, which is recorded with the step.
        """
        for cache in decoding:
            cache.reserve()
        if admitted and not self.is_cross:
            slots = [
                cache.reserve_prompt(cache.length + end - begin)
                for cache, (begin, end) in zip(admitted, spans, strict=True)
            ]
            self.starts = starts_of(admitted)
            self.key_slots = []
            for number, group in enumerate(self.kv_cache.groups) if self.starts else ():
                seen = starts_seen(self.starts, group.window)
                of_keys = zip(slots, self.starts, seen, strict=True)
                self.key_slots.append(
                    torch.cat([each[number, start - shown :] for each, start, shown in of_keys])
                )
            new = zip(slots, admitted, strict=True)
            self.prompt_slots = torch.cat([each[:, cache.length :] for each, cache in new], dim=1)

    def prepare_rows(self, slots: Tensor, last: Tensor) -> None:
        """Set the token slots that `attend` reads and writes.

        Recorded with a step: it reads no values.

        slots: (groups of layers, rows, tokens) int64: the token slots of each row
        last:  (rows,) int64: the index of each row's last token
        """
        num_groups, _, width = slots.shape
        newest = last[None, :, None].expand(num_groups, -1, 1)
        self.written_slots = slots.gather(2, newest)[:, :, 0]
        shown: dict[int | None, tuple[Tensor, Tensor]] = {}  # by the window
        self.read_slots, self.masks = [], []
        for group, of_group in zip(self.kv_cache.groups, slots, strict=True):
            window = None if self.is_cross or (group.window or width) >= width else group.window
            if window not in shown:
                shown[window] = self._shown(window, width, last)
            at, is_hidden = shown[window]
            if window is not None:
                of_group = of_group.gather(1, at)
            self.read_slots.append(of_group.masked_fill(is_hidden, BLANK).view(-1))
            self.masks.append(~is_hidden[:, None, None])
        if self.compute_bias is not None:
            self._add_bias(self.compute_bias(width), last)

    @staticmethod
    def _shown(window: int | None, width: int, last: Tensor) -> tuple[Tensor, Tensor]:
        """Return the columns to read and a mask of those without a token: (rows, columns) each."""
        at = torch.arange(window or width, device=last.device)
        if window is None:
            return at, at > last[:, None]
        at = last[:, None] - (window - 1) + at
        return at.clamp(min=0), at < 0

    def _add_bias(self, bias: Tensor, last: Tensor) -> None:
        """Turn the masks into biases.

        bias: (query heads, width), by distance from the last column
        """
        newest = bias.shape[1] - 1
        at = torch.arange(bias.shape[1], device=last.device)
        by_row = bias[:, (newest - last[:, None] + at).clamp(0, newest)]
        (mask,) = self.masks  # no model has both a bias and windows
        self.masks = [by_row.transpose(0, 1)[:, :, None].masked_fill(~mask, -torch.inf)]

    def prompt_attention(self, spans: Spans, num_tokens: int) -> PromptAttention:
        device, starts = self.kv_cache.shape.device, self.starts
        if starts and self.windows:  # each prompt has its own place in a window
            return SeparatePrompts(spans, starts)
        return PaddedPrompts.of(spans, num_tokens, device, starts) or SeparatePrompts(spans, starts)

    def write_prompts(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        group, at = self.kv_cache.places[layer]
        assert self.prompt_slots is not None
        slots, kv = self.prompt_slots[group], self.kv_cache.kv[at]
        # Without the tokens that pad the row behind the last prompt.
        kv[:, 0].index_copy_(0, slots, keys[0, :, : len(slots)].transpose(0, 1))
        kv[:, 1].index_copy_(0, slots, values[0, :, : len(slots)].transpose(0, 1))
        if not self.key_slots:
            return keys, values
        all_keys, all_values = kv.index_select(0, self.key_slots[group]).permute(1, 2, 0, 3)
        return all_keys[None], all_values[None]

    def attend(
        self,
        layer: int,
        query: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
        scoring: Scoring,
    ) -> Tensor:
        num_rows, num_heads, _, head_size = query.shape
        group, at = self.kv_cache.places[layer]
        kv = self.kv_cache.kv[at]  # (token slots, 2, heads, head size)
        assert self.is_cross or scoring.window == self.kv_cache.groups[group].window
        assert self.written_slots is not None
        if keys is not None and values is not None:
            kv[:, 0].index_copy_(0, self.written_slots[group], keys[:, :, 0])
            kv[:, 1].index_copy_(0, self.written_slots[group], values[:, :, 0])
        gathered = kv.index_select(0, self.read_slots[group]).view(num_rows, -1, *kv.shape[1:])
        all_keys, all_values = gathered.permute(2, 0, 3, 1, 4)
        mask = self.masks[group]
        if not scoring.is_usual:
            output = attend_masked(query, all_keys, all_values, mask, scoring)
            return output.reshape(num_rows, 1, num_heads, head_size)
        # Query heads that share a key head become its queries, so that no key is repeated.
        query = query.reshape(num_rows, gathered.shape[3], -1, head_size)
        output = scaled_dot_product_attention(
            query, all_keys, all_values, attn_mask=mask, scale=scoring.scale
        )
        return output.reshape(num_rows, 1, num_heads, head_size)
