"""Attention in which each row of a step sees its own keys only, whatever their number.

Registered with `transformers` under a name of its own. Where the keys are an ordinary
tensor (an encoder, a prefill, `model.generate`) it is the library's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from worker.engine.slots import Parts

NAME = "tidemill"


def install(model: Any) -> None:
    """Make a model that runs on `sdpa` attend by slots where its cache is one of slots."""
    AttentionInterface.register(NAME, row_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def row_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor | Parts,
    value: Tensor | Parts,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query: (rows, heads, 1, head size); returns (rows, 1, heads, head size)."""
    if not isinstance(key, Parts) or not isinstance(value, Parts):
        assert isinstance(key, Tensor)
        assert isinstance(value, Tensor)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    num_rows, num_heads, _, head_size = query.shape
    attended = query.new_empty(num_rows, 1, num_heads, head_size)
    scale = kwargs.get("scaling")
    at = 0
    for index, num in enumerate(key.num_rows):
        keys, values = key.of_slot[index], value.of_slot[index]
        mine = query[at : at + num]
        if key.are_cross:
            # Rows of one request read the same keys, once.
            seen = scaled_dot_product_attention(mine.transpose(0, 2), keys, values, scale=scale)
            attended[at : at + num, 0] = seen[0].transpose(0, 1)
        else:
            # Query heads that share a key head are its queries: no key is repeated.
            grouped = mine.reshape(num, keys.shape[1], -1, head_size)
            bias = None if key.biases is None else key.biases[index]
            seen = scaled_dot_product_attention(grouped, keys, values, attn_mask=bias, scale=scale)
            attended[at : at + num, 0] = seen.reshape(num, num_heads, head_size)
        at += num
    return attended, None
