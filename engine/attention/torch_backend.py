"""TorchAttentionBackend: attention to contiguous caches with torch, one call for each sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.attention.base import AttentionBackend, ComputeBias, Scoring, Spans
from engine.attention.prompt_attention import SeparatePrompts, attend_masked, starts_of, starts_seen
from engine.kv_cache.contiguous import ContiguousKVCache, ContiguousSequenceCache


class ContiguousAttentionBackend(AttentionBackend):
    """Base class of the backends for contiguous caches."""

    is_repeatable: bool
    """Whether a step can be recorded: the calls are the same whatever the sequences are."""

    def __init__(self, kv_cache: ContiguousKVCache, is_cross: bool) -> None:
        """is_cross: whether rows attend to the encoder's output"""
        self.kv_cache: ContiguousKVCache = kv_cache
        self.shape = kv_cache.shape
        self.is_cross = is_cross
        self.compute_bias: ComputeBias | None = None
        self.windows: tuple[int | None, ...] = ()
        # (query heads, width), of which the last columns are those of a shorter sequence
        self.bias: Tensor | None = None
        self.prompts: list[tuple[ContiguousSequenceCache, tuple[int, int]]] = []
        self.starts: tuple[int, ...] = ()  # tokens of each prompt that are in its cache

    def prepare(
        self,
        decoding: Sequence[ContiguousSequenceCache],
        admitted: Sequence[ContiguousSequenceCache] = (),
        spans: Spans = (),
    ) -> None:
        for cache in decoding:
            cache.reserve()
        for cache, (begin, end) in zip(admitted, spans, strict=True):
            cache.reserve(end - begin + 1)
        if self.compute_bias is not None and decoding:
            num_tokens = max(cache.length for cache in decoding) + 1
            if self.bias is None or self.bias.shape[1] < num_tokens:
                self.bias = self.compute_bias(2 * num_tokens + 64)  # so that it is seldom computed
        self.prompts = list(zip(admitted, spans, strict=True))
        self.starts = starts_of(admitted)
        self._prepare_decode(list(decoding))
        self._prepare_prompts()

    def prompt_attention(self, spans: Spans, num_tokens: int) -> SeparatePrompts:
        return SeparatePrompts(spans, self.starts)

    def write_prompts(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        for cache, (begin, end) in self.prompts:
            cache.write_prompt(layer, keys[0, :, begin:end], values[0, :, begin:end])
        if not self.starts:
            return keys, values
        window = self.windows[layer] if self.windows else None
        seen = [
            cache.of_layer(layer, cache.length - num_seen, cache.length + end - begin)[:, 0]
            for (cache, (begin, end)), num_seen in zip(
                self.prompts, starts_seen(self.starts, window), strict=True
            )
        ]
        all_keys, all_values = torch.cat(seen, dim=2)
        return all_keys[None], all_values[None]

    def _prepare_decode(self, caches: list[ContiguousSequenceCache]) -> None:
        """Prepare `attend` for these caches, each of which has memory for one more token."""

    def _prepare_prompts(self) -> None:
        """Prepare for `self.prompts`, which follow the decoding rows."""


class TorchAttentionBackend(ContiguousAttentionBackend):
    is_repeatable = False

    def __init__(self, kv_cache: ContiguousKVCache, is_cross: bool) -> None:
        assert not kv_cache.by_ancestors
        super().__init__(kv_cache, is_cross)
        self.caches: list[ContiguousSequenceCache] = []

    def _prepare_decode(self, caches: list[ContiguousSequenceCache]) -> None:
        self.caches = caches

    def attend(
        self,
        layer: int,
        query: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
        scoring: Scoring,
    ) -> Tensor:
        num_rows, num_heads, _, head_size = query.shape
        output = query.new_empty(num_rows, 1, num_heads, head_size)
        at = 0
        for cache in self.caches:
            rows = slice(at, at + cache.num_rows)
            if keys is not None and values is not None:
                new = cache.of_layer(layer, cache.length, cache.length + 1)
                new[0] = keys[rows]
                new[1] = values[rows]
            attended = self._attend_to(cache, layer, query[rows], scoring)
            output[rows, 0] = attended.reshape(cache.num_rows, num_heads, head_size)
            at += cache.num_rows
        return output

    def _attend_to(
        self, cache: ContiguousSequenceCache, layer: int, query: Tensor, scoring: Scoring
    ) -> Tensor:
        if self.is_cross:
            assert cache.encoded_kv is not None
            keys, values = cache.encoded_kv[layer]
            # Rows of one request read the same keys, once.
            query = query[:, :, 0].transpose(0, 1)[None]  # (1, query heads, rows, head size)
            attended = attend_masked(query, keys[None], values[None], None, scoring)
            return attended[0].transpose(0, 1)
        num_tokens = cache.length + 1
        first = 0 if scoring.window is None else max(num_tokens - scoring.window, 0)
        keys, values = cache.of_layer(layer, first, num_tokens)
        if not scoring.is_usual:
            return attend_masked(query, keys, values, None, scoring)
        # Query heads that share a key head become its queries, so that no key is repeated.
        query = query.reshape(cache.num_rows, keys.shape[1], -1, query.shape[-1])
        bias = None if self.bias is None else self.bias[None, :, None, first - num_tokens :]
        return scaled_dot_product_attention(
            query, keys, values, attn_mask=bias, scale=scoring.scale
        )


def with_contiguous_heads(tensor: Tensor) -> Tensor:
    """Return the tensor with the heads of each row contiguous in memory.

    tensor: (rows, heads, 1, head size); returns the same shape
    """
    head_size = tensor.shape[3]
    if tensor.stride(3) == 1 and tensor.stride(1) == head_size:
        return tensor
    return tensor.contiguous()
