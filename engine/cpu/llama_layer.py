"""LlamaLayer: a decoder layer of LLaMA as four products, with one pass of ours between two.

Touvron et al., 2023 (arXiv:2302.13971). What the model's own code does around its products
takes as long as they do in a small model, and a tenth of a step in which prompts are read in
a larger one. Each kind of layer is tried against its own code first, and whatever is not a
step in flight is left to that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from engine.attention.base import AttentionBackend
from engine.attention.forward_context import DecoderContext
from engine.attention.prompt_attention import SeparatePrompts
from engine.cpu.attention_backend import CpuAttentionBackend
from engine.cpu.merged_linear import Part
from engine.cpu.optional import compiled

log = logging.getLogger(__name__)

KINDS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"})
NUM_TRIED = 12  # tokens


class LlamaLayer(nn.Module):
    def __init__(self, own: Any, attention: CpuAttentionBackend, is_last: bool = False) -> None:
        """own: one of `transformers`, with its weights laid out and its parts fused
        is_last: of its model, where nobody looks at what is made of most of a prompt"""
        super().__init__()
        self.own = own
        self.is_last = is_last
        # In tuples, so that nothing is in the model twice.
        self.attention = (attention, own.self_attn.layer_idx, own.self_attn.scaling)
        self.products = (
            together(own.self_attn.q_proj, own.self_attn.k_proj, own.self_attn.v_proj),
            own.self_attn.o_proj,
            together(own.mlp.gate_proj, own.mlp.up_proj),
            own.mlp.down_proj,
        )
        before, after = own.input_layernorm, own.post_attention_layernorm
        self.norms = (
            (before.weight, before.variance_epsilon),
            (after.weight, after.variance_epsilon),
        )
        self.normalized = compiled("kernels.rms_norm").normalized
        self.silu_and_mul = compiled("kernels.activation").silu_and_mul

    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        forward_context: Any = None,
        position_embeddings: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states: (rows, tokens, width); returns the same shape, but the last layer only
        the tokens whose logits are requested."""
        attention, layer, scale = self.attention
        if (
            not isinstance(forward_context, DecoderContext)
            or forward_context.attention is not attention
        ):
            return self.own(  # type: ignore[no-any-return]  # a module
                hidden_states,
                *args,
                forward_context=forward_context,
                position_embeddings=position_embeddings,
                **kwargs,
            )
        to_joined, to_width, to_gates, down = self.products
        before, after = self.norms
        cos, sin = position_embeddings
        rows = hidden_states.flatten(0, 1)
        joined = to_joined(self.normalized(rows, *before))
        attended = attention.attend_turned(layer, joined, cos, sin, scale)
        indices = forward_context.logits_indices
        if self.is_last and indices is not None:
            rows, attended = rows[indices], attended[indices]
        rows = added(to_width, attended, rows)
        gate, up = to_gates(self.normalized(rows, *after)).chunk(2, dim=-1)
        rows = added(down, self.silu_and_mul(gate, up), rows)
        return rows.view(len(hidden_states), -1, rows.shape[1])


def install(model: Any, attention: AttentionBackend) -> int:
    """Replace the layers of a model, if one gives the same so; returns how many."""
    if not isinstance(attention, CpuAttentionBackend) or not attention.can_attend_turned():
        return 0
    layers: Any = getattr(model.get_decoder(), "layers", ())
    if not all(map(can_be_replaced, layers)) or not len(layers):
        return 0
    if not does_the_same(layers[0], attention):
        log.warning("not fused: it does something else", extra={"kind": type(layers[0]).__name__})
        return 0
    for index, own in enumerate(layers):
        layers[index] = LlamaLayer(own, attention, is_last=index == len(layers) - 1)
    return len(layers)


def can_be_replaced(own: Any) -> bool:
    """Whether all that is looked for is there."""
    return (
        type(own).__name__ in KINDS
        and type(own.mlp).__name__ == "SiluAndMulMLP"
        and all(
            type(each).__name__ == "RMSNorm"
            for each in (own.input_layernorm, own.post_attention_layernorm)
        )
        and all(isinstance(each, Part) for each in (own.self_attn.q_proj, own.mlp.gate_proj))
    )


@torch.inference_mode()
def does_the_same(own: Any, attention: CpuAttentionBackend) -> bool:
    width = len(own.input_layernorm.weight)
    try:
        found, expected = (
            list(tried(forward, attention, width)) for forward in (LlamaLayer(own, attention), own)
        )
        return all(
            torch.allclose(one, other, rtol=1e-4, atol=1e-4)
            for one, other in zip(found, expected, strict=True)
        )
    except Exception:  # it wants or returns something else, or torch lacks a product
        return False


def tried(
    forward: Callable[..., Tensor],
    attention: CpuAttentionBackend,
    width: int,
) -> Iterator[Tensor]:
    """What it makes of a prompt, and of one more token with another prompt beside it."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn((1, NUM_TRIED, width), generator=draw)
    angles = torch.randn((1, NUM_TRIED, attention.shape.head_size // 2), generator=draw)
    turns = angles.cos().repeat(1, 1, 2), angles.sin().repeat(1, 1, 2)
    mask = torch.ones((1, 1, 1, 1), dtype=torch.bool)  # unused
    new_sequence = attention.kv_cache.new_sequence
    first, second = new_sequence(1), new_sequence(2)
    half = NUM_TRIED // 2
    spans = ((0, half),)
    attention.prepare([], [first], spans)
    yield forward(
        hidden[:, :half],
        position_embeddings=tuple(each[:, :half] for each in turns),
        attention_mask=mask,
        forward_context=DecoderContext(attention, SeparatePrompts(spans)),
    )
    first.commit_prompt(half)
    spans = ((0, NUM_TRIED - 1),)
    attention.prepare([first], [second], spans)
    yield forward(
        hidden,
        position_embeddings=turns,
        attention_mask=mask,
        forward_context=DecoderContext(attention, SeparatePrompts(spans), num_decode_tokens=1),
    )


def together(*parts: Any) -> nn.Module:
    """The product that they are parts of."""
    return parts[0].together.linear  # type: ignore[no-any-return]  # a module


def added(linear: nn.Module, rows: Tensor, others: Tensor) -> Tensor:
    """others + linear(rows), in one pass where it has one."""
    plus = getattr(linear, "plus", None)
    if plus is not None:
        return plus(rows, others)  # type: ignore[no-any-return]  # a module
    return others + linear(rows)  # type: ignore[no-any-return]  # a module
