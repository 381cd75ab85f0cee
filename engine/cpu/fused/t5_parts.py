"""Maps the modules of T5's stacks and layers to the names that LLaMA's have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn

from engine.cpu.kernels import activation

LAYERS = frozenset({"T5Block", "MT5Block"})


def has_blocks(own: Any) -> bool:
    """Return whether the modules of a stack have T5's names."""
    return hasattr(own, "block")


def stack_of(own: Any) -> Any:
    """Return the parts of a stack of LAYERS, by LLaMA's names."""
    return SimpleNamespace(
        embed_tokens=own.embed_tokens,
        layers=[layer_of(each) for each in own.block],
        norm=own.final_layer_norm,
        rotary_emb=None,
        # Its position bias is added to the scores of every layer.
        relative_attention=own.block[0].layer[0].SelfAttention,
    )


def layer_of(own: Any) -> Any:
    """Return the parts of a layer of LAYERS, by LLaMA's names."""
    attending, *crossing, feeding = own.layer
    parts = {
        "self_attn": attention_of(attending.SelfAttention),
        "input_layernorm": attending.layer_norm,
        "post_attention_layernorm": feeding.layer_norm,
        "mlp": mlp_of(feeding.DenseReluDense),
    }
    if crossing:
        parts["cross_attn"] = attention_of(crossing[0].EncDecAttention)
        parts["pre_cross_attn_layernorm"] = crossing[0].layer_norm
        parts["post_cross_attn_layernorm"] = None
    return SimpleNamespace(**parts)


def attention_of(own: Any) -> Any:
    """Return the query and output projections of an attention, by LLaMA's names."""
    return SimpleNamespace(q_proj=own.q, o_proj=own.o)


def mlp_of(own: Any) -> Any:
    """Return the parts of a feed-forward part, by LLaMA's names.

    `activation` is None if the compiled kernels have no such activation.
    """
    kind: int | None = None
    if type(own.act) is nn.ReLU:
        kind = activation.RELU
    elif type(own.act) is nn.GELU and own.act.approximate == "tanh":
        kind = activation.GELU
    named = {"gate_proj": own.wi_0} if hasattr(own, "wi_0") else {"gate_up_proj": own.wi}
    return SimpleNamespace(**named, down_proj=own.wo, activation=kind)
