"""The attention layers of a decoder, detected by recording the attention calls of a forward pass.

Configurations describe a layer's attention in a dozen ways, and some not at all; the arguments of
the attention function are the same for all models.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from engine.attention.base import Scoring
from engine.attention.forward_context import attending
from engine.attention.hf_plugin import UnknownAttention
from engine.kv_cache.base import KVShape

CROSS_ATTENTION = ("encoder_attn", "cross_attn")  # in a layer of a decoder
NEEDED = ("position_ids", "attention_mask", "logits_to_keep")  # of a decoder's forward


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """The arguments of one layer's attention call."""

    num_heads: int  # of queries
    num_key_heads: int
    key_size: int
    value_size: int
    scoring: Scoring


class CallRecorder:
    """A ForwardContext that records each call and returns zeros."""

    def __init__(self) -> None:
        # By layer number, in call order: a decoder layer calls self-attention before
        # cross-attention.
        self.calls: dict[int, list[AttentionLayer]] = {}
        self.has_bias = False
        self.dtype: torch.dtype | None = None

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
        position_bias: Tensor | None,
    ) -> Tensor:
        sizes = (query.shape[1], key.shape[1], key.shape[3], value.shape[3])
        self.calls.setdefault(layer, []).append(AttentionLayer(*sizes, scoring))
        self.has_bias |= position_bias is not None
        self.dtype = key.dtype
        return value.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3])

    def layers(self, num_calls: int) -> list[list[AttentionLayer]]:
        """The calls of each layer, `num_calls` of them. Raises UnknownAttention."""
        if not self.calls:
            raise UnknownAttention("it does not attend by the interface of transformers")
        if sorted(self.calls) != list(range(len(self.calls))):
            raise UnknownAttention("its layers are not counted one by one")
        if any(len(each) != num_calls for each in self.calls.values()):
            raise UnknownAttention(f"its layers do not attend {num_calls} times each")
        return [self.calls[each] for each in range(len(self.calls))]


@torch.inference_mode()
def decoder_calls(model: Any) -> CallRecorder:
    """Record the attention calls of a decoder on which `hf_plugin` is installed.

    Raises UnknownAttention.
    """
    recorder = CallRecorder()
    token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    mask = unused_mask(1, token.device)
    if model.config.is_encoder_decoder:
        width = cross_projections_of(model.get_decoder())[0][0].in_features
        encoded = torch.zeros((1, 1, width), dtype=model.dtype, device=model.device)
        with attending(recorder):
            model.get_decoder()(
                input_ids=token, attention_mask=mask, encoder_hidden_states=encoded,
                use_cache=False,
            )  # fmt: skip
        return recorder
    parameters = inspect.signature(model.forward).parameters
    missing = [name for name in NEEDED if name not in parameters]
    if missing:
        raise UnknownAttention(f"its forward takes no {missing[0]}")
    with attending(recorder):
        model(token, position_ids=token, attention_mask=mask, use_cache=False)
    if recorder.has_bias:
        raise UnknownAttention("a bias is added to its scores")
    return recorder


def kv_shape_of(model: Any) -> KVShape:
    """The shape of the keys and values that a model caches for each token.

    Raises UnknownAttention where it differs from layer to layer.
    """
    recorder = decoder_calls(model)
    layers = recorder.layers(num_calls_of(model))
    shapes = {
        (each.num_key_heads, each.key_size, each.value_size) for calls in layers for each in calls
    }
    if len(shapes) > 1:
        raise UnknownAttention("its layers keep keys of different sizes")
    ((num_heads, key_size, value_size),) = shapes
    if key_size != value_size:
        raise UnknownAttention("its keys are of another size than its values")
    assert recorder.dtype is not None
    return KVShape(len(layers), num_heads, key_size, recorder.dtype, model.device)


def windows_of(model: Any) -> tuple[int | None, ...]:
    """The attention window of each layer of the decoder; () if no layer has one.

    Raises UnknownAttention.
    """
    layers = decoder_calls(model).layers(num_calls_of(model))
    windows = tuple(each[0].scoring.window for each in layers)
    return windows if any(each is not None for each in windows) else ()


def num_calls_of(model: Any) -> int:
    """The number of attention calls that each layer makes in one pass."""
    return 2 if model.config.is_encoder_decoder else 1


def cross_projections_of(decoder: Any) -> list[tuple[Any, Any]]:
    """The modules of each layer that project the encoder's output to keys and values.

    Raises UnknownAttention.
    """
    if hasattr(decoder, "block"):  # T5 and its relatives
        attentions = [each.layer[1].EncDecAttention for each in decoder.block]
        return [(each.k, each.v) for each in attentions]
    projections = []
    for layer in getattr(decoder, "layers", ()):
        modules = [getattr(layer, each) for each in CROSS_ATTENTION if hasattr(layer, each)]
        if (
            len(modules) != 1
            or not hasattr(modules[0], "k_proj")
            or not hasattr(modules[0], "v_proj")
        ):
            break
        projections.append((modules[0].k_proj, modules[0].v_proj))
    else:
        if projections:
            return projections
    raise UnknownAttention("its decoder attends to the encoder by parts of its own")


@cache
def unused_mask(num_rows: int, device: torch.device) -> Tensor:
    """Return a mask, (rows, 1, 1, 1), of a shape that models pass through unchanged.

    The attention function ignores it; without it the model would build one.
    """
    return torch.ones((num_rows, 1, 1, 1), dtype=torch.bool, device=device)
