"""FusedEncoder: the forward pass of an encoder (T5, T5Gemma) as one table of compiled calls.

Its layers are those of a LLaMA-like decoder with bidirectional attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.attention.base import Spans
from engine.attention.forward_context import attending
from engine.attention.layers import CallRecorder, unused_mask
from engine.cpu.fused.encoder_attention import NUM_FIRST, EncoderAttention, encoder_attention_agrees
from engine.cpu.fused.fused_stack import FusedStack, is_known
from engine.cpu.fused.stack_step import Ints, StackStep
from engine.cpu.fused.step_buffers import StepBuffers
from engine.cpu.kernels import prefill_attention
from engine.cpu.self_test import agrees

EncoderForward = Callable[[list[int], list[int], Spans], Tensor]
"""Takes the tokens, positions and spans of prompts; returns the states, (tokens, width)."""
TEST_SPANS = ((0, 12), (12, 19))


class FusedEncoder(StackStep):
    """Runs an encoder with fusible layers."""

    def __call__(self, tokens: Ints, positions: Ints, spans: Spans) -> Tensor:
        """Encode prompts that are concatenated in a row.

        tokens, positions: of the row. Without a rotary embedding the positions are not read
        spans:   of the prompts; tokens after the last span are padding
        returns: (tokens, width) float32, overwritten by the next pass
        raises:  IndexError for a token id without an embedding
        """
        self.prepare(tokens, positions)
        self.table.calls[self.attention_at, 1 : 1 + NUM_FIRST] = self.attention.prepare(spans)
        self.table.run(self.capacity.threads)
        return self.states[: len(tokens)]

    def make_table(self, buffers: StepBuffers) -> None:
        stack, capacity = self.stack, self.capacity
        self.states = torch.empty((capacity.tokens, stack.width))
        self.attention = EncoderAttention(
            stack.num_key_heads, stack.head_size, capacity.tokens, capacity.threads
        )
        self.bias = None
        if stack.relative_attention is not None:
            self.bias = stack.distance_bias(capacity.tokens)
        calls, attention_at = self.begin_calls(buffers), []
        for layer in stack.layers:
            calls.add_queries(layer)
            cos, sin = buffers.rotation_addresses(layer.rotary_kind)
            for call in self.attention.calls(
                buffers.wide, layer.output.in_features, cos, sin, layer.scoring, buffers.narrow,
                self.bias,
            ):  # fmt: skip
                attention_at.append(calls.add_as_is(call))
            calls.add_output(layer)
            calls.add_mlp(layer)
        calls.add_norm(calls.hidden, stack.norm, self.states.data_ptr())
        self.attention_at = np.array(attention_at)
        self.end_calls(calls)


def fused_encoder_for(model: Any, encode: EncoderForward) -> FusedEncoder | None:
    """Return the fused encoder of a model; None if it is not fusible or disagrees with the model.

    model:  its linear layers are packed and its norms replaced by the fused ones
    encode: runs the model's own code
    """
    encoder = model.get_encoder()
    if not is_known(encoder):
        return None
    stack = FusedStack(encoder, encoder_calls(encoder).layers(1))
    if not stack.is_fusible() or not prefill_attention.can_attend(stack.head_size):
        return None
    if not encoder_attention_agrees(stack.num_key_heads, stack.head_size):
        return None
    fused = FusedEncoder(stack)

    def states(encode: EncoderForward) -> Iterator[Tensor]:
        ids = [3 * each % 7 for each in range(TEST_SPANS[-1][1])]
        positions = [at for begin, end in TEST_SPANS for at in range(end - begin)]
        yield encode(ids, positions, TEST_SPANS)

    return fused if agrees("fused encoder", lambda: states(fused), lambda: states(encode)) else None


@torch.inference_mode()
def encoder_calls(encoder: Any) -> CallRecorder:
    """Record the attention calls of an encoder on which `hf_plugin` is installed."""
    recorder = CallRecorder()
    token = torch.zeros((1, 1), dtype=torch.int64)
    with attending(recorder):
        encoder(input_ids=token, position_ids=token, attention_mask=unused_mask(1, token.device))
    return recorder
