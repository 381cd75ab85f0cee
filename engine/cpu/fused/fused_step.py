"""FusedStep: a whole step of a LLaMA-like decoder as one table of compiled calls.

It replaces the model's own code where every linear layer is a packed gemm of ours. The same table
serves prompts, decoding rows, and both in one step; beside an encoder it serves decoding rows.
`FusedLayer` describes a layer. After its attention the last layer computes only the tokens whose
logits are requested.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.attention.base import DecodeForward
from engine.attention.layers import decoder_calls, num_calls_of
from engine.cpu import packed_gemm
from engine.cpu.attention_backend import CpuAttentionBackend
from engine.cpu.fused.fused_layer import CrossAttention, FusedLayer
from engine.cpu.fused.fused_stack import FusedStack, is_known
from engine.cpu.fused.fused_trial import (
    prompt_attention_agrees,
    trial_decode_logits,
    trial_logits,
)
from engine.cpu.fused.layer_calls import LayerCalls
from engine.cpu.fused.stack_step import Ints, StackStep
from engine.cpu.fused.step_buffers import StepBuffers
from engine.cpu.kernels import decode_attention, gather_rows, prefill_attention, softcap
from engine.cpu.self_test import agrees

# The calls of a layer's attention, in their order.
ATTENTION = (
    decode_attention.run,
    prefill_attention.write_prompts,
    prefill_attention.attend_prompts,
)
NO_CACHES = (0,) * decode_attention.GROUP  # the arguments that differ from step to step


class FusedStep(StackStep):
    """Runs steps of a decoder with fusible layers."""

    def __init__(
        self,
        model: Any,
        stack: FusedStack,
        attention: CpuAttentionBackend,
        cross_attention: CpuAttentionBackend | None = None,
    ) -> None:
        """cross_attention: the backend for the encoder's output"""
        super().__init__(stack)
        self.attention, self.cross_attention = attention, cross_attention
        self.head = model.get_output_embeddings()
        config = model.config.get_text_config(decoder=True)
        self.norm = stack.norm
        if getattr(config, "scale_decoder_outputs", False):  # T5, where the head is the embedding
            weight = stack.norm.weight.detach() * stack.width**-0.5
            self.norm = type(stack.norm)(nn.Parameter(weight, False), stack.norm.variance_epsilon)
        self.logits_softcap: float | None = getattr(config, "final_logit_softcapping", None)

    def __call__(self, tokens: Ints, positions: Ints, logits_indices: Ints | None = None) -> Tensor:
        """Run a step for the prepared rows and for the prompts after them.

        tokens, positions: of the decoding rows and then of the prompts
        logits_indices:    the tokens whose logits are requested, in order; None: all
        returns: (requested, vocab) float32, overwritten by the next step
        raises:  IndexError for a token id without an embedding
        """
        indices = None if logits_indices is None else np.array(logits_indices)
        num_logits = len(tokens if indices is None else indices)
        self.prepare(tokens, positions, num_logits)
        for at, call, caches in zip(
            self.attention_at, ATTENTION,
            (self.attention.rows_table, *2 * (self.attention.prompts_table,)), strict=True,
        ):  # fmt: skip
            self._prepare_attention(at, call, self.attention, caches)
        if self.attention.bias is not None:
            bias = self.attention.bias
            of_rows = self.attention_at[0]
            self.table.calls[of_rows, 1 + decode_attention.BIAS] = bias.data_ptr()
            self.table.calls[of_rows, 1 + decode_attention.BIAS_WIDTH] = bias.shape[1]
        if self.cross_attention is not None:
            self._prepare_attention(
                self.cross_attention_at, decode_attention.run, self.cross_attention,
                self.cross_attention.rows_table,
            )  # fmt: skip
        self._prepare_gather(indices)
        self.table.run(self.capacity.threads)
        return self.logits[:num_logits]

    def _prepare_attention(
        self, at: np.ndarray, call: Any, attention: CpuAttentionBackend, caches: Any
    ) -> None:
        """Write a step's attention arguments into the table.

        at:     the indices of the calls, one for each layer
        caches: a CacheTable
        """
        calls, first = self.table.calls, attention.first_arguments
        calls[at, 1 : 1 + len(first)] = first
        calls[at, 0] = call.address if caches.num_caches else 0
        calls[at, 1 + decode_attention.NUM_CACHES] = caches.num_caches
        calls[at, 1 + decode_attention.CACHES] = caches.of_layers()

    def _prepare_gather(self, indices: np.ndarray | None) -> None:
        """Let the last layer continue with the rows at the indices only; None: with all."""
        calls, gathers = self.table.calls, self.gathers_at
        calls[gathers, 0] = 0 if indices is None else gather_rows.run.address
        if indices is not None:
            calls[gathers, 1 + gather_rows.INDEX] = indices.ctypes.data
        source = gather_rows.SOURCE if indices is None else gather_rows.OUT
        calls[self.gathered_at] = calls[gathers, 1 + source]

    def make_table(self, buffers: StepBuffers) -> None:
        self.logits = torch.empty((self.capacity.logits, self.head.out_features))
        logits, calls = self.logits.data_ptr(), self.begin_calls(buffers)
        attention_at, cross_attention_at = [], []
        for layer in self.stack.layers:
            is_last = layer is self.stack.layers[-1]
            calls.add_queries(layer)
            attention_at.append(self._add_attention(calls, layer))
            if is_last:
                # Gathered rows are read from another buffer.
                self.gathers_at = [
                    calls.add_gather(source, out, size, of_requested=True)
                    for source, out, size in (
                        (calls.hidden, buffers.normed, self.stack.width),
                        (buffers.narrow, buffers.wide, layer.output.in_features),
                    )
                ]
            places = calls.add_output(layer, of_requested=is_last)
            if is_last:
                self.gathered_at = tuple(np.array([(call, 1 + each) for call, each in places]).T)
            if layer.cross is not None:
                calls.add_cross_queries(layer.cross)
                cross_attention_at.append(self._add_cross_attention(calls, layer.cross))
                calls.add_output(layer.cross)
            calls.add_mlp(layer, of_requested=is_last)
        calls.add_norm(calls.hidden, self.norm, buffers.normed, of_requested=True)
        calls.add_product(self.head, buffers.normed, logits, of_requested=True)
        if self.logits_softcap is not None:
            bounded = (logits, 0, self.head.out_features, self.logits_softcap)
            calls.add((softcap.run, bounded), softcap.NUM_ROWS, of_requested=True)
        self.end_calls(calls)
        self.attention_at = np.array(attention_at).T  # (3, layers)
        self.cross_attention_at = np.array(cross_attention_at, np.int64)

    def _add_attention(self, calls: LayerCalls, layer: FusedLayer) -> list[int]:
        """Add the calls of a layer's self-attention; returns their indices."""
        buffers = calls.buffers
        cos, sin = buffers.rotation_addresses(layer.rotary_kind)
        arguments = self.attention.merged_arguments(
            buffers.wide, layer.output.in_features, cos, sin, layer.scoring, buffers.narrow
        )
        return [calls.add_as_is((each, (*NO_CACHES, *arguments))) for each in ATTENTION]

    def _add_cross_attention(self, calls: LayerCalls, cross: CrossAttention) -> int:
        """Add the call of a layer's cross-attention; returns its index."""
        buffers, scoring, width = calls.buffers, cross.scoring, cross.query.out_features
        group = width // (self.stack.num_key_heads * self.stack.head_size)
        no_new_keys, no_bias, no_rotation, no_sinks = (0,) * 4, (0,) * 2, (0,) * 2, 0
        arguments = (
            group, scoring.scale, buffers.wide, width, *no_new_keys, buffers.narrow, *no_bias,
            *no_rotation, no_sinks, scoring.softcap or 0.0, 0, decode_attention.UNBOUNDED,
        )  # fmt: skip
        return calls.add_as_is((decode_attention.run, (*NO_CACHES, *arguments)))


def fused_step_for(
    model: Any, attention: Any, cross_attention: Any = None, decode: DecodeForward | None = None
) -> FusedStep | None:
    """Return the fused step of a decoder; None if it is not fusible or disagrees with the model.

    model:           its linear layers are packed and its norms replaced by the fused ones
    attention:       the backend of self-attention
    cross_attention: the backend of cross-attention; None without an encoder
    decode:          a decode step by the model's own code; None without an encoder
    """
    if not isinstance(attention, CpuAttentionBackend) or not can_be_fused(model):
        return None
    stack = FusedStack(model.get_decoder(), decoder_calls(model).layers(num_calls_of(model)))
    if not stack.is_fusible():
        return None
    step = FusedStep(model, stack, attention, cross_attention)
    if cross_attention is not None:
        return step if decode_agrees(step, attention, cross_attention, decode) else None
    if not attention.has_prefill() or not prompt_attention_agrees(attention):
        return None

    def fused() -> Iterator[Tensor]:
        return trial_logits(
            attention, lambda trial: step(trial.ids, trial.positions, trial.indices)
        )

    def plain() -> Iterator[Tensor]:
        return trial_logits(attention, lambda trial: trial.logits_of(model))

    return step if agrees("fused step", fused, plain) else None


def decode_agrees(
    step: FusedStep, attention: Any, cross_attention: Any, decode: DecodeForward | None
) -> bool:
    """Return whether decode steps beside an encoder agree with the model's own code."""
    assert decode is not None

    def fused(tokens: Tensor, positions: Tensor) -> Tensor:
        return step(tokens.tolist(), positions.tolist())

    return agrees(
        "fused step beside an encoder",
        lambda: trial_decode_logits(attention, cross_attention, fused),
        lambda: trial_decode_logits(attention, cross_attention, decode),
    )


def can_be_fused(model: Any) -> bool:
    """Return whether the decoder is of a known kind and its output layer is packed."""
    head = model.get_output_embeddings()
    return is_known(model.get_decoder()) and isinstance(head, packed_gemm.PackedGemmLinear)
