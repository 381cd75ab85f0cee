"""FusedStack: the modules of a `transformers` decoder or encoder that a fused step calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.attention.layers import AttentionLayer
from engine.cpu.fused import t5_parts
from engine.cpu.fused.fused_layer import LAYERS, FusedLayer
from engine.cpu.kernels import rms_norm

# Other kinds of rotary embedding depend on the longest text of a step.
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
SCALED_EMBEDDINGS = frozenset(
    {"GemmaTextScaledWordEmbedding", "Gemma2TextScaledWordEmbedding",
     "Gemma3TextScaledWordEmbedding"}
)  # fmt: skip
# Stacks that multiply the output of a plain embedding by the square root of its width.
SCALING = frozenset({"T5GemmaEncoder", "T5GemmaDecoder"})


class FusedStack:
    """The layers, embedding, norm and rotary embedding of a stack that `is_known`."""

    def __init__(self, own: Any, calls: list[list[AttentionLayer]]) -> None:
        """calls: the recorded attention calls of each layer"""
        self.calls = calls
        self.embedding: Tensor = own.embed_tokens.weight  # (vocab, width)
        self.embedding_scale = float(getattr(own.embed_tokens, "embed_scale", 1.0))
        if type(own).__name__ in SCALING:
            self.embedding_scale = self.width**0.5
        parts = parts_of(own)
        self.rotary, self.norm = parts.rotary_emb, parts.norm
        # T5's first self-attention, whose position bias every layer adds to its scores; else None.
        self.relative_attention: Any = getattr(parts, "relative_attention", None)
        has_kinds = isinstance(getattr(self.rotary, "rope_type", None), dict)
        kinds = own.config.layer_types if has_kinds else [None] * len(calls)
        self.layers = [
            FusedLayer(layer, [each.scoring for each in its_calls], kind)
            for layer, its_calls, kind in zip(parts.layers, calls, kinds, strict=True)
        ]
        self.rotary_kinds = sorted({each.rotary_kind for each in self.layers}, key=str)
        if self.rotary is None:
            self.rotary_kinds = []

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
        """Return whether all parts are packed and fused, all heads have one size, and the rotary
        embedding, if any, can be fused."""
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
        """Return whether the rotary embedding, if any, covers whole heads and depends on positions
        only."""
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
        """Return the cosines and sines of all positions, (1, positions, head size) each."""
        positions = torch.arange(num_positions)[None]
        named = {} if kind is None else {"layer_type": kind}
        both = self.rotary(self.embedding, position_ids=positions, **named)
        return [each.contiguous() for each in both]

    def distance_bias(self, num_tokens: int) -> Tensor:
        """Return the position bias of T5's encoder by distance: (query heads, 2 * num_tokens - 1).

        The middle column is for distance 0; the columns before it are for earlier tokens, the
        columns after it for later ones.
        """
        bias: Tensor = self.relative_attention.compute_bias(
            1, 2 * num_tokens - 1, past_seen_tokens=num_tokens - 1
        )
        return bias[0, :, 0].contiguous()


def parts_of(own: Any) -> Any:
    """Return an object that has the parts of a stack by the names of LLaMA's."""
    return t5_parts.stack_of(own) if t5_parts.has_blocks(own) else own


def is_known(own: Any) -> bool:
    """Return whether the stack has layers, an embedding and a norm of known classes."""
    layers = own.block if t5_parts.has_blocks(own) else getattr(own, "layers", ())
    embedding: Any = getattr(own, "embed_tokens", None)
    return (
        len(layers) > 0
        and all(type(each).__name__ in LAYERS for each in layers)
        and (type(embedding) is nn.Embedding or type(embedding).__name__ in SCALED_EMBEDDINGS)
        and embedding.weight.dtype == torch.float32
        and embedding.weight.is_contiguous()
        and isinstance(parts_of(own).norm, rms_norm.RMSNorm)
    )
