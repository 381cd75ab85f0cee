"""PagedAttentionBackend: all rows of a step attend in one call, by the tables of a paged cache."""

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
        # Of a step, for all its layers:
        self.read_slots: Tensor | None = None  # (rows * tokens,)
        self.written_slots: Tensor | None = None  # (rows,)
        self.mask: Tensor | None = None  # (rows, 1 or query heads, 1, tokens)
        self.window_masks: dict[int, Tensor] = {}  # by the window: (rows, 1, 1, tokens) bool
        # Of prompts:
        self.prompt_slots: Tensor | None = None  # (tokens,)
        self.starts: tuple[int, ...] = ()  # the tokens of each that its cache has already
        # By the window: (tokens that it shows of prompts,), if some have begun.
        self.key_slots: dict[int | None, Tensor] = {}

    def prepare(
        self,
        decoding: Sequence[PagedSequenceCache],
        admitted: Sequence[PagedSequenceCache] = (),
        spans: Spans = (),
    ) -> None:
        """Reserve memory. What a step reads and writes comes with `prepare_rows`, for a recorded
        step takes all that differs from tensors."""
        for cache in decoding:
            cache.reserve()
        if admitted and not self.is_cross:
            slots = [
                cache.reserve_prompt(cache.length + end - begin)
                for cache, (begin, end) in zip(admitted, spans, strict=True)
            ]
            self.starts = starts_of(admitted)
            self.key_slots = {}
            for window in {None, *self.windows} if self.starts else ():
                seen = starts_seen(self.starts, window)
                of_keys = zip(slots, self.starts, seen, strict=True)
                self.key_slots[window] = torch.cat(
                    [each[start - num_seen :] for each, start, num_seen in of_keys]
                )
            new = zip(slots, admitted, strict=True)
            self.prompt_slots = torch.cat([each[cache.length :] for each, cache in new])

    def prepare_rows(self, slots: Tensor, last: Tensor) -> None:
        """Let `attend` read and write these token slots. Recorded with a step: reads no number.

        slots: (rows, tokens) int64, of each row's tokens
        last:  (rows,) int64: the index of each row's last token
        """
        at = torch.arange(slots.shape[1], device=slots.device)
        is_hidden = at > last[:, None]
        self.read_slots = slots.masked_fill(is_hidden, BLANK).view(-1)
        self.written_slots = slots.gather(1, last[:, None])[:, 0]
        is_hidden = is_hidden[:, None, None]
        self.window_masks = {
            window: ~is_hidden & (at > last[:, None] - window)[:, None, None]
            for window in {each for each in self.windows if each is not None}
        }
        if self.compute_bias is None:
            self.mask = ~is_hidden
            return
        bias = self.compute_bias(slots.shape[1])
        # (query heads, width): by how far back a token is, counted from the end.
        newest = bias.shape[1] - 1
        by_row = bias[:, (newest - last[:, None] + at).clamp(0, newest)]
        self.mask = by_row.transpose(0, 1)[:, :, None].masked_fill(is_hidden, -torch.inf)

    def prompt_attention(self, spans: Spans, num_tokens: int) -> PromptAttention:
        device, starts = self.kv_cache.shape.device, self.starts
        if starts and self.windows:  # each prompt has its own place in a window
            return SeparatePrompts(spans, starts)
        return PaddedPrompts.of(spans, num_tokens, device, starts) or SeparatePrompts(spans, starts)

    def write_prompts(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        slots, kv = self.prompt_slots, self.kv_cache.kv[layer]
        assert slots is not None
        # Without the tokens that pad the row behind the last prompt.
        kv[:, 0].index_copy_(0, slots, keys[0, :, : len(slots)].transpose(0, 1))
        kv[:, 1].index_copy_(0, slots, values[0, :, : len(slots)].transpose(0, 1))
        if not self.key_slots:
            return keys, values
        read_slots = self.key_slots[self.windows[layer] if self.windows else None]
        all_keys, all_values = kv.index_select(0, read_slots).permute(1, 2, 0, 3)
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
        kv = self.kv_cache.kv[layer]  # (token slots, 2, heads, head size)
        assert self.read_slots is not None
        assert self.written_slots is not None
        if keys is not None and values is not None:
            kv[:, 0].index_copy_(0, self.written_slots, keys[:, :, 0])
            kv[:, 1].index_copy_(0, self.written_slots, values[:, :, 0])
        gathered = kv.index_select(0, self.read_slots).view(num_rows, -1, *kv.shape[1:])
        all_keys, all_values = gathered.permute(2, 0, 3, 1, 4)
        mask = self.mask if scoring.window is None else self.window_masks[scoring.window]
        if not scoring.is_usual:
            output = attend_masked(query, all_keys, all_values, mask, scoring)
            return output.reshape(num_rows, 1, num_heads, head_size)
        # Query heads that share a key head are its queries: no key is repeated.
        query = query.reshape(num_rows, gathered.shape[3], -1, head_size)
        output = scaled_dot_product_attention(
            query, all_keys, all_values, attn_mask=mask, scale=scoring.scale
        )
        return output.reshape(num_rows, 1, num_heads, head_size)
