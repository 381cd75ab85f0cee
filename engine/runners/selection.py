"""Chooses the step executor of a model when it is loaded."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from engine.attention.base import AttentionBackend, DecodeForward, Spans
from engine.attention.paged_backend import PagedAttentionBackend
from engine.attention.torch_backend import ContiguousAttentionBackend
from engine.cpu.attention_backend import CpuAttentionBackend
from engine.cpu.self_test import kernel_module
from engine.runners.captured_step import CapturedExecutor
from engine.runners.graph_executor import GraphExecutor
from engine.runners.step_executor import (
    EagerExecutor,
    FusedEncoderDecoder,
    FusedExecutor,
    PrefillBatch,
    PrefillForward,
    StepExecutor,
)


def executor_for(
    model: Any,
    decode: DecodeForward,
    prefill: PrefillForward,
    attention: AttentionBackend,
    cross_attention: AttentionBackend | None = None,
) -> StepExecutor:
    """Return the fastest executor whose results agree with the model's own forward passes."""
    if isinstance(attention, PagedAttentionBackend):
        assert cross_attention is None or isinstance(cross_attention, PagedAttentionBackend)
        return GraphExecutor(decode, prefill, attention, cross_attention)
    assert isinstance(attention, ContiguousAttentionBackend)
    executor = CapturedExecutor if attention.is_repeatable else EagerExecutor
    otherwise = executor(decode, prefill, model.device)
    if not isinstance(attention, CpuAttentionBackend):
        return otherwise
    module = kernel_module("fused.fused_step")
    fused_step = module and module.fused_step_for(model, attention, cross_attention, decode)
    if cross_attention is None:
        return otherwise if fused_step is None else FusedExecutor(fused_step)

    def encode(tokens: list[int], positions: list[int], spans: Spans) -> Tensor:
        return prefill(PrefillBatch(tokens, positions, spans))

    module = kernel_module("fused.fused_encoder")
    fused_encoder = module and module.fused_encoder_for(model, encode)
    if fused_step is None and fused_encoder is None:
        return otherwise
    return FusedEncoderDecoder(fused_encoder, fused_step, otherwise)
