"""The attention that an engine in flight plugs into a model of `transformers`, by its own name.

With a `forward_context` (see there) attention is ours. Without one, as in `model.generate`, it
is the library's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from engine.attention.base import usual_scale
from engine.attention.forward_context import ForwardContext

NAME = "tidemill"


def install(model: Any) -> None:
    """Let a model that runs on `sdpa` attend by `attention`."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    for module in model.modules():
        # The stacks of T5 have copies of its configuration, which 5.19 does not reach.
        config = getattr(module, "config", None)
        if config is not None and getattr(config, "_attn_implementation", None) == "sdpa":
            config._attn_implementation = NAME


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    forward_context: ForwardContext | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """query: (rows, heads, tokens, head size); returns (rows, tokens, heads, head size), None."""
    if forward_context is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    scale, position_bias = kwargs.get("scaling"), kwargs.get("position_bias")
    scale = usual_scale(query.shape[-1]) if scale is None else scale
    # The layers of an encoder have no number, and need none.
    layer = getattr(module, "layer_idx", None) or 0
    return forward_context.attend(layer, query, key, value, scale, position_bias), None
