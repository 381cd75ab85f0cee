"""The attention that an engine in flight plugs into a model, by a name of its own.

Rows of a step attend by slot, and prompts that were put one after the other into a single
row attend each to itself. Anything else (`model.generate`) is the library's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from engine.attention.base import Spans, usual_scale
from engine.attention.padded_prefill import PaddedPrefill
from engine.kv_cache.hf_cache import CacheView, MixedCacheView

NAME = "tidemill"


def install(model: Any) -> None:
    """Make a model that runs on `sdpa` attend by slots where its cache is one of slots."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    for module in model.modules():
        # The stacks of T5 have copies of its configuration, which 5.19 does not reach.
        config = getattr(module, "config", None)
        if config is not None and getattr(config, "_attn_implementation", None) == "sdpa":
            config._attn_implementation = NAME


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor | CacheView | MixedCacheView,
    value: Tensor | CacheView | MixedCacheView,
    attention_mask: Tensor | None,
    spans: Spans | PaddedPrefill | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query: (rows, heads, tokens, head size); returns (rows, tokens, heads, head size)."""
    if isinstance(key, MixedCacheView):
        assert isinstance(value, MixedCacheView)
        assert isinstance(spans, tuple)
        return attend_mixed(spans, query, key, value, **kwargs)
    if isinstance(key, CacheView):
        assert isinstance(value, CacheView)
        scale = kwargs.get("scaling")
        scale = usual_scale(query.shape[-1]) if scale is None else scale
        return key.attention.attend(key.layer, query, key.new, value.new, scale), None
    assert isinstance(value, Tensor)
    if spans is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    is_causal = getattr(module, "is_causal", True)
    if isinstance(spans, PaddedPrefill):
        scale, bias = kwargs.get("scaling"), kwargs.get("position_bias")
        return spans.attend(query, key, value, is_causal, scale, bias), None
    return attend_within(spans, query, key, value, is_causal, **kwargs)


def attend_mixed(
    spans: Spans,
    query: Tensor,
    key: MixedCacheView,
    value: MixedCacheView,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Tokens of a step to their slots, prompts after them to themselves.

    query: (1, heads, tokens, head size); returns (1, tokens, heads, head size)
    """
    num_stepping = key.num_stepping
    asking, keys, values = (
        each[0, :, :num_stepping].transpose(0, 1)[:, :, None]
        for each in (query, key.tokens, value.tokens)
    )
    scale = usual_scale(query.shape[-1]) if scaling is None else scaling
    stepped = key.attention.attend(key.layer, asking, keys, values, scale)
    asking, keys, values = (each[:, :, num_stepping:] for each in (query, key.tokens, value.tokens))
    read, _ = attend_within(spans, asking, keys, values, is_causal=True, scaling=scale)
    return torch.cat([stepped.transpose(0, 1), read], dim=1), None


def attend_within(
    spans: Spans,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Each span of a single row to itself.

    position_bias: (1, heads, tokens, tokens) of an encoder; it depends on distances, so that
    of a span is cut out of it
    """
    assert position_bias is None or not is_causal
    attended = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
    attended[:, spans[-1][1] :] = 0  # a row may be filled up behind the last
    for begin, end in spans:
        mine = slice(begin, end)
        bias = None if position_bias is None else position_bias[:, :, mine, mine]
        seen = scaled_dot_product_attention(
            query[:, :, mine],
            key[:, :, mine],
            value[:, :, mine],
            attn_mask=bias,
            scale=scaling,
            is_causal=is_causal,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        attended[:, mine] = seen.transpose(1, 2)
    return attended, None
