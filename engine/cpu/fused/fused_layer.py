"""FusedLayer: the modules and settings of a `transformers` layer that a fused step calls."""

from __future__ import annotations

from typing import Any

from engine.attention.base import Scoring
from engine.cpu import packed_gemm
from engine.cpu.fused import t5_parts
from engine.cpu.kernels import activation, rms_norm
from engine.cpu.merged_linear import LinearSlice
from engine.cpu.packed_experts import PackedExperts, Products

# The names stay a list: a short self-test would not see what a layer does only far into a text.
LAYERS = t5_parts.LAYERS | frozenset(
    {"LlamaDecoderLayer", "MistralDecoderLayer", "Phi3DecoderLayer", "Qwen2DecoderLayer",
     "Qwen3DecoderLayer", "GemmaDecoderLayer", "Gemma2DecoderLayer", "Gemma3DecoderLayer",
     "MixtralDecoderLayer", "Qwen3MoeDecoderLayer", "T5GemmaDecoderLayer", "T5GemmaEncoderLayer"}
)  # fmt: skip

# Routers of `transformers` that take the softmax of a linear layer's output and choose the largest.
ROUTERS = frozenset({"MixtralTopKRouter", "Qwen3MoeTopKRouter"})


class Mixture:
    """A router and its experts."""

    def __init__(self, own: Any) -> None:
        """own: a block with a router of ROUTERS and packed experts"""
        router = own.gate
        self.router = packed_gemm.PackedGemmLinear(router.weight.detach(), None)
        self.num_experts, self.num_chosen = self.router.out_features, int(router.top_k)
        self.is_normalized = bool(getattr(router, "norm_topk_prob", True))
        self.first: Products = own.experts.first
        self.second: Products = own.experts.second
        self.activation: int | None = own.experts.kind


class CrossAttention:
    """The cross-attention of a decoder layer."""

    def __init__(self, own: Any, scoring: Scoring) -> None:
        """own: a layer with cross-attention"""
        self.scoring = scoring
        self.input_norm: Any = own.pre_cross_attn_layernorm
        self.query: Any = own.cross_attn.q_proj
        self.output: Any = own.cross_attn.o_proj
        self.attended_norm: Any = own.post_cross_attn_layernorm


class FusedLayer:
    """The linear layers, norms and settings of a layer of LAYERS. A norm that it lacks is None."""

    def __init__(self, own: Any, scorings: list[Scoring], rotary_kind: str | None) -> None:
        """own:         a layer, or its parts, by the names of LLaMA's
        scorings:    of the self-attention and, if the layer has one, of the cross-attention
        rotary_kind: the kind of rotary embedding, where a model has several; None: the only one
        """
        self.scoring, self.rotary_kind = scorings[0], rotary_kind
        self.cross = CrossAttention(own, scorings[1]) if hasattr(own, "cross_attn") else None
        attention, mlp = own.self_attn, own.mlp
        self.qkv = merged_product(attention, "qkv_proj", "q_proj")
        self.output: Any = attention.o_proj
        # Either a mixture of experts, or one gated product for all.
        self.mixture = Mixture(mlp) if is_mixture(mlp) else None
        self.gate_up = merged_product(mlp, "gate_up_proj", "gate_proj")
        self.down: Any = getattr(mlp, "down_proj", None)
        self.activation: int | None = getattr(self.mixture or mlp, "activation", None)
        self.input_norm: Any = first_of(own, "input_layernorm", "pre_self_attn_layernorm")
        # Norms over each head, before the rotary embedding.
        self.query_norm: Any = getattr(attention, "q_norm", None)
        self.key_norm: Any = getattr(attention, "k_norm", None)
        # Some layers (Gemma 2 and 3, T5Gemma) also norm the output of a part before adding it.
        self.mlp_norm: Any = getattr(own, "pre_feedforward_layernorm", None)
        self.mlp_output_norm: Any = getattr(own, "post_feedforward_layernorm", None)
        self.attended_norm: Any = first_of(
            own, "post_attention_layernorm", "post_self_attn_layernorm"
        )
        if self.mlp_norm is None:
            self.mlp_norm, self.attended_norm = self.attended_norm, None

    def is_fusible(self) -> bool:
        """Return whether every part is packed and fused."""
        linears = [self.qkv, self.output]
        if self.mixture is None:
            linears += [self.gate_up, self.down]
        optional = [self.query_norm, self.key_norm, self.attended_norm, self.mlp_output_norm]
        norms = [self.input_norm, self.mlp_norm]
        scorings = [self.scoring]
        if self.cross is not None:
            linears += [self.cross.query, self.cross.output]
            norms.append(self.cross.input_norm)
            optional.append(self.cross.attended_norm)
            scorings.append(self.cross.scoring)
        norms += [each for each in optional if each is not None]
        return (
            all(isinstance(each, packed_gemm.PackedGemmLinear) for each in linears)
            and all(isinstance(each, rms_norm.RMSNorm) for each in norms)
            and self.activation in (activation.GATED if self.is_gated else activation.PLAIN)
            and (self.mixture is None or self.mlp_output_norm is None)
            and all(each.sinks is None for each in scorings)
        )

    @property
    def is_gated(self) -> bool:
        """Return whether the feed-forward part has a gate, or only an activation between two
        products."""
        return self.mixture is not None or self.gate_up.out_features > self.down.in_features

    @property
    def wide(self) -> int:
        """The most floats of a token before an activation or before attention."""
        mixture = self.mixture
        inner = mixture.num_chosen * mixture.first.width if mixture else self.gate_up.out_features
        of_cross = 0 if self.cross is None else self.cross.query.out_features
        return int(max(self.qkv.out_features, of_cross, inner))

    @property
    def narrow(self) -> int:
        """The most floats of a token after an activation or after attention."""
        mixture = self.mixture
        inner = mixture.num_chosen * mixture.second.depth if mixture else self.down.in_features
        of_cross = 0 if self.cross is None else self.cross.output.in_features
        return int(max(self.output.in_features, of_cross, inner))


def first_of(own: Any, *names: str) -> Any:
    """Return a module's child by the first of the names that exists."""
    return next(getattr(own, each) for each in names if hasattr(own, each))


def is_mixture(own: Any) -> bool:
    """Return whether a feed-forward part is a router and packed experts, and nothing else."""
    return (
        type(getattr(own, "gate", None)).__name__ in ROUTERS
        and {name for name, _ in own.named_children()} == {"gate", "experts"}
        and isinstance(own.experts, PackedExperts)
    )


def merged_product(module: Any, name: str, first: str) -> Any:
    """Return the merged linear layer: the module's own by that name, or the one that `merge` made.

    `first` names a slice of the latter. Returns None if there is neither.
    """
    part = getattr(module, first, None)
    return part.merged.linear if isinstance(part, LinearSlice) else getattr(module, name, None)
