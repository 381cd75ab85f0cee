"""FusedStack: a decoder or an encoder of `transformers` as the parts that a fused step calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.attention.layers import AttentionLayer
from engine.cpu.fused.fused_layer import LAYERS, FusedLayer
from engine.cpu.kernels import rms_norm

# Other kinds of rotary embedding depend on the longest text of a step.
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
SCALED_EMBEDDINGS = frozenset(
    {"GemmaTextScaledWordEmbedding", "Gemma2TextScaledWordEmbedding",
     "Gemma3TextScaledWordEmbedding"}
)  # fmt: skip
# Those that scale what a plain embedding gives, by the root of its width.
SCALING = frozenset({"T5GemmaEncoder", "T5GemmaDecoder"})


class FusedStack:
    """The layers of a stack of which `is_known` is true, and what is around them."""

    def __init__(self, own: Any, calls: list[list[AttentionLayer]]) -> None:
        """calls: of the attention, by layer"""
        self.calls = calls
        self.embedding: Tensor = own.embed_tokens.weight  # (vocab, width)
        self.embedding_scale = float(getattr(own.embed_tokens, "embed_scale", 1.0))
        if type(own).__name__ in SCALING:
            self.embedding_scale = self.width**0.5
        self.rotary, self.norm = own.rotary_emb, own.norm
        has_kinds = isinstance(getattr(self.rotary, "rope_type", None), dict)
        kinds = own.config.layer_types if has_kinds else [None] * len(calls)
        self.layers = [
            FusedLayer(layer, [each.scoring for each in its_calls], kind)
            for layer, its_calls, kind in zip(own.layers, calls, kinds, strict=True)
        ]
        self.rotary_kinds = sorted({each.rotary_kind for each in self.layers}, key=str)

    @property
    def width(self) -> int:
        return self.embedding.shape[1]

    @property
    def num_key_heads(self) -> int:
        return self.calls[0][0].num_key_heads

    @property
    def head_size(self) -> int:
        return self.calls[0][0].key_size

    def is_fusible(self) -> bool:
        """Return whether every part is packed and fused, heads are of one size, and positions
        rotate all of them."""
        sizes = {
            (each.num_key_heads, each.key_size, each.value_size)
            for calls in self.calls
            for each in calls
        }
        return (
            sizes == {(self.num_key_heads, self.head_size, self.head_size)}
            and all(each.is_fusible() for each in self.layers)
            and self.is_rotated()
        )

    def is_rotated(self) -> bool:
        """Return whether all of a head is rotated, by angles that depend on its position only."""
        types = getattr(self.rotary, "rope_type", None)
        for kind in self.rotary_kinds:
            rope_type = types if kind is None else types.get(kind)  # type: ignore[union-attr]  # a dict
            name = "inv_freq" if kind is None else f"{kind}_inv_freq"
            if (
                rope_type not in ROPE_TYPES
                or 2 * len(getattr(self.rotary, name, ())) != self.head_size
            ):
                return False
        return True

    def rotations(self, kind: str | None, num_positions: int) -> list[Tensor]:
        """Return the cosines and the sines of all positions: (1, positions, head size) each."""
        positions = torch.arange(num_positions)[None]
        named = {} if kind is None else {"layer_type": kind}
        both = self.rotary(self.embedding, position_ids=positions, **named)
        return [each.contiguous() for each in both]


def is_known(own: Any) -> bool:
    """Return whether a stack's layers are of a known kind, between parts that a table calls."""
    layers = getattr(own, "layers", ())
    embedding: Any = getattr(own, "embed_tokens", None)
    return (
        len(layers) > 0
        and all(type(each).__name__ in LAYERS for each in layers)
        and (type(embedding) is nn.Embedding or type(embedding).__name__ in SCALED_EMBEDDINGS)
        and embedding.weight.dtype == torch.float32
        and embedding.weight.is_contiguous()
        and isinstance(own.norm, rms_norm.RMSNorm)
    )
