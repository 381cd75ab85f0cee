"""The attention layers of a decoder, found out from the calls that one forward pass makes.

Configurations name what a layer does in a dozen ways, and some do not name it; the call of the
attention function has it in one.
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

NEEDED = ("position_ids", "attention_mask", "logits_to_keep")  # of a decoder's forward


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """The call of one layer."""

    num_heads: int  # of queries
    num_key_heads: int
    key_size: int
    value_size: int
    scoring: Scoring


class CallRecorder:
    """A ForwardContext that attends to nothing and keeps what it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, AttentionLayer]] = []
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
        if position_bias is not None:
            raise UnknownAttention("a bias is added to its scores")
        sizes = (query.shape[1], key.shape[1], key.shape[3], value.shape[3])
        self.calls.append((layer, AttentionLayer(*sizes, scoring)))
        self.dtype = key.dtype
        return value.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


@torch.inference_mode()
def attention_layers(model: Any) -> tuple[tuple[AttentionLayer, ...], torch.dtype]:
    """The layers of a decoder-only model that attends by `hf_plugin`, in their order, and the
    type of the keys. Raises UnknownAttention."""
    parameters = inspect.signature(model.forward).parameters
    missing = [name for name in NEEDED if name not in parameters]
    if missing:
        raise UnknownAttention(f"its forward takes no {missing[0]}")
    recorder = CallRecorder()
    token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    mask = unused_mask(1, token.device)
    with attending(recorder):
        model(token, position_ids=token, attention_mask=mask, use_cache=False)
    if not recorder.calls or recorder.dtype is None:
        raise UnknownAttention("it does not attend by the interface of transformers")
    calls = dict(recorder.calls)
    if len(calls) < len(recorder.calls) or sorted(calls) != list(range(len(calls))):
        raise UnknownAttention("its layers are not counted one by one")
    return tuple(calls[each] for each in range(len(calls))), recorder.dtype


def kv_shape_of(model: Any) -> KVShape:
    """What a decoder-only model keeps of a token. Raises UnknownAttention where layers keep keys
    and values of different sizes."""
    layers, dtype = attention_layers(model)
    shapes = {(each.num_key_heads, each.key_size, each.value_size) for each in layers}
    if len(shapes) > 1:
        raise UnknownAttention("its layers keep keys of different sizes")
    ((num_heads, key_size, value_size),) = shapes
    if key_size != value_size:
        raise UnknownAttention("its keys are of another size than its values")
    return KVShape(len(layers), num_heads, key_size, dtype, model.device)


def windows_of(model: Any) -> tuple[int | None, ...]:
    """Of each layer; () if none has one."""
    windows = tuple(each.scoring.window for each in attention_layers(model)[0])
    return windows if any(each is not None for each in windows) else ()


@cache
def unused_mask(num_rows: int, device: torch.device) -> Tensor:
    """(rows, 1, 1, 1): a mask in the shape that a model hands on as it is. The attention function
    ignores it; without it the model would make one."""
    return torch.ones((num_rows, 1, 1, 1), dtype=torch.bool, device=device)
