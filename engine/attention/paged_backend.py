"""PagedAttentionBackend: all rows of a step attend in one call, by the tables of a page pool."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.kv_cache.paged import BLANK, PagedSequenceCache, PagePool
from engine.runners.static_step import CROSSED, LENGTH, StepInputs


class PagedAttentionBackend:
    def __init__(self, page_pool: PagePool, is_cross: bool) -> None:
        self.page_pool = page_pool
        self.is_cross = is_cross
        self.bias: Tensor | None = None
        # Of a step, for all its layers:
        self.read: Tensor | None = None  # (rows * columns,): which columns of the pool
        self.written: Tensor | None = None  # (rows,)
        self.mask: Tensor | None = None  # (rows, 1 or query heads, 1, columns)
        # Of prompts:
        self.placed: Tensor | None = None  # (tokens,)

    def new_slot(self, num_rows: int, num_expected: int) -> PagedSequenceCache:
        return self.page_pool.slot(num_rows)

    def hold_prompts(
        self, slots: list[PagedSequenceCache], spans: tuple[tuple[int, int], ...]
    ) -> None:
        placed = [
            slot.place_prompt(end - begin) for slot, (begin, end) in zip(slots, spans, strict=True)
        ]
        self.placed = torch.cat(placed)

    def fill(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """keys, values: (1, heads, tokens, head size)"""
        pool = self.page_pool.pool[layer]
        assert self.placed is not None
        pool[:, 0].index_copy_(0, self.placed, keys[0].transpose(0, 1))
        pool[:, 1].index_copy_(0, self.placed, values[0].transpose(0, 1))

    def hold(self, slots: list[PagedSequenceCache]) -> None:
        """Nothing: what a step reads and writes is told with its inputs."""

    def hold_inputs(self, inputs: StepInputs) -> None:
        """What the rows of the next step read and write, by tensors alone."""
        columns = inputs.crossed_columns if self.is_cross else inputs.columns
        last = inputs.told[CROSSED] - 1 if self.is_cross else inputs.told[LENGTH]
        at = torch.arange(columns.shape[1], device=columns.device)
        is_hidden = at > last[:, None]
        self.read = columns.masked_fill(is_hidden, BLANK).view(-1)
        self.written = columns.gather(1, last[:, None])[:, 0]
        is_hidden = is_hidden[:, None, None]
        if self.bias is None:
            self.mask = ~is_hidden
        else:
            # (query heads, width): by how far back a token is, counted from the end.
            newest = self.bias.shape[1] - 1
            by_row = self.bias[:, (newest - last[:, None] + at).clamp(0, newest)]
            self.mask = by_row.transpose(0, 1)[:, :, None].masked_fill(is_hidden, -torch.inf)

    def attend(
        self, layer: int, query: Tensor, keys: Tensor | None, values: Tensor | None, scale: float
    ) -> Tensor:
        num_rows, num_heads, _, head_size = query.shape
        pool = self.page_pool.pool[layer]  # (columns, 2, heads, head size)
        assert self.read is not None
        assert self.written is not None
        if keys is not None and values is not None:
            pool[:, 0].index_copy_(0, self.written, keys[:, :, 0])
            pool[:, 1].index_copy_(0, self.written, values[:, :, 0])
        seen = pool.index_select(0, self.read).view(num_rows, -1, *pool.shape[1:])
        seen_keys, seen_values = seen.permute(2, 0, 3, 1, 4)
        # Query heads that share a key head are its queries: no key is repeated.
        asked = query.reshape(num_rows, seen.shape[3], -1, head_size)
        attended = scaled_dot_product_attention(
            asked, seen_keys, seen_values, attn_mask=self.mask, scale=scale
        )
        return attended.reshape(num_rows, 1, num_heads, head_size)
