"""ForwardContext: what the attention function knows of the forward pass that calls it.

A runner calls the model within `attending`, or passes a context to it as `forward_context=...`
where the model's own code hands that on to the attention function: not every one does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.attention.base import AttentionBackend, PromptAttention, Scoring


class ForwardContext(Protocol):
    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
        position_bias: Tensor | None,
    ) -> Tensor:
        """query:      (rows, query heads, tokens, head size)
        key, value: (rows, heads, tokens, head size), of the same tokens
        returns:    (rows, tokens, query heads, head size)
        """


@dataclass(frozen=True, slots=True)
class EncoderContext:
    """The context of an encoder's pass, which keeps no keys and values."""

    prompts: PromptAttention

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
        position_bias: Tensor | None,
    ) -> Tensor:
        return self.prompts.attend(query, key, value, False, scoring, position_bias)


@dataclass(frozen=True, slots=True)
class DecoderContext:
    """The context of a decoder's pass. Without `prompts` each row has one token. With them there is
    a single row: the tokens of a decode step, if any, and then the prompts."""

    attention: AttentionBackend
    prompts: PromptAttention | None = None
    num_decode_tokens: int = 0  # before the prompts
    # Beside an encoder:
    cross_attention: AttentionBackend | None = None
    encoded_keys: Tensor | None = None  # the placeholder by which cross-attention is known

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
        position_bias: Tensor | None,
    ) -> Tensor:
        if key is self.encoded_keys:
            assert self.cross_attention is not None
            return self.cross_attention.attend(layer, query, None, None, scoring)
        if self.prompts is None:
            return self.attention.attend(layer, query, key, value, scoring)
        num_decode = self.num_decode_tokens
        query_, key_, value_ = (each[:, :, num_decode:] for each in (query, key, value))
        key_, value_ = self.attention.write_prompts(layer, key_, value_)
        output = self.prompts.attend(query_, key_, value_, True, scoring, None)
        if not num_decode:
            return output
        query_, key_, value_ = (
            each[0, :, :num_decode].transpose(0, 1)[:, :, None] for each in (query, key, value)
        )
        decoded = self.attention.attend(layer, query_, key_, value_, scoring)
        return torch.cat([decoded.transpose(0, 1), output], dim=1)


_thread = threading.local()


@contextmanager
def attending(context: ForwardContext) -> Iterator[None]:
    """Let the model that is called within attend in `context`."""
    before = current()
    _thread.context = context
    try:
        yield
    finally:
        _thread.context = before


def current() -> ForwardContext | None:
    """The context of the forward pass that runs on this thread."""
    return getattr(_thread, "context", None)
