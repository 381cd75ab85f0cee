"""ForwardContext: the data that a forward pass gives to the attention function inside the model.

A runner calls the model within `attending`, or passes `forward_context=...` to a model whose own
code hands that argument on to the attention function. Not every model does.
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
        """Write the keys and values to the cache, if there is one, and attend.

        query:      (rows, query heads, tokens, head size)
        key, value: (rows, heads, tokens, head size), of the same tokens
        returns:    (rows, tokens, query heads, head size)
        """


@dataclass(frozen=True, slots=True)
class EncoderContext:
    """The context of an encoder's pass, which caches no keys and values."""

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
    """The context of a decoder's pass.

    Without `prompts` each row has one token. With `prompts` there is a single row: the tokens of a
    decode step, if any, and then the prompts.
    """

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
    """Run the model within this context manager with `context` as its forward context."""
    before = current()
    _thread.context = context
    try:
        yield
    finally:
        _thread.context = before


def current() -> ForwardContext | None:
    """The forward context of this thread; None outside of `attending`."""
    return getattr(_thread, "context", None)
