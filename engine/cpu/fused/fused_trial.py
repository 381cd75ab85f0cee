"""The self-tests of a fused step: its logits compared with those of the model's own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.attention.base import DecodeForward, Scoring, Spans
from engine.attention.forward_context import DecoderContext
from engine.attention.prompt_attention import SeparatePrompts, attend_within
from engine.cpu.attention_backend import CpuAttentionBackend
from engine.cpu.self_test import agrees

NUM_TEST_TOKENS = 12
NUM_TEST_STEPS = 3
NUM_ENCODED_TOKENS = (9, 4)  # of sequences of one row and two
# A prompt longer than the window; a self-test's other prompts are mostly shorter than the model's.
NUM_WINDOW_TOKENS, SCORING = 40, Scoring(0.25, window=5, softcap=0.5)


@dataclass(frozen=True, slots=True)
class TrialStep:
    """A step of the self-test, for which the attention is prepared."""

    context: DecoderContext
    ids: list[int]
    positions: list[int]
    indices: list[int]

    def logits_of(self, model: Any) -> Tensor:
        """Return the logits by the model's own code: (indices, vocab)."""
        logits: Tensor = model(
            torch.tensor([self.ids]),
            position_ids=torch.tensor([self.positions]),
            attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool),  # not used by our attention
            use_cache=False,
            forward_context=self.context,
        ).logits[0]
        return logits[self.indices]


def trial_logits(
    attention: CpuAttentionBackend, logits_of: Callable[[TrialStep], Tensor]
) -> Iterator[Tensor]:
    """Yield the logits of a prompt, and of one more token with another prompt beside it."""
    ids = [3 * each % 7 for each in range(NUM_TEST_TOKENS)]
    first, second = (attention.kv_cache.new_sequence(num_rows) for num_rows in (1, 2))
    half = NUM_TEST_TOKENS // 2
    spans: Spans = ((0, half),)
    attention.prepare([], [first], spans)
    context = DecoderContext(attention, SeparatePrompts(spans))
    yield logits_of(TrialStep(context, ids[:half], list(range(half)), list(range(half)))).clone()
    first.commit_prompt(half)
    spans = ((0, NUM_TEST_TOKENS - 1),)
    attention.prepare([first], [second], spans)
    context = DecoderContext(attention, SeparatePrompts(spans), num_decode_tokens=1)
    positions = [half, *range(NUM_TEST_TOKENS - 1)]
    yield logits_of(TrialStep(context, ids, positions, [0, NUM_TEST_TOKENS - 1])).clone()


def trial_decode_logits(
    attention: CpuAttentionBackend, cross_attention: CpuAttentionBackend, decode: DecodeForward
) -> Iterator[Tensor]:
    """Yield the logits of the first steps of two sequences beside an encoder."""
    draw, shape = torch.Generator().manual_seed(0), attention.shape
    caches = [attention.kv_cache.new_sequence(num_rows) for num_rows in (1, 2)]
    for cache, num_tokens in zip(caches, NUM_ENCODED_TOKENS, strict=True):
        sizes = (shape.num_layers, 2, shape.num_heads, num_tokens, shape.head_size)
        cache.write_encoded(torch.randn(sizes, generator=draw))
    for position in range(NUM_TEST_STEPS):
        for each in (attention, cross_attention):
            each.prepare(caches)
        tokens = torch.arange(position, position + 3)
        yield decode(tokens, torch.full_like(tokens, position)).clone()
        for cache in caches:
            cache.commit_token()


def prompt_attention_agrees(attention: CpuAttentionBackend) -> bool:
    """Return whether compiled prefill attention agrees with torch's, under window and cap."""
    shape, num_tokens = attention.shape, NUM_WINDOW_TOKENS
    width = shape.num_heads * shape.head_size
    draw = torch.Generator().manual_seed(0)
    qkv = torch.randn(num_tokens, 3 * width, generator=draw)

    def compiled() -> Iterator[Tensor]:
        attended = torch.empty(num_tokens, width)
        attention.prepare([], [attention.kv_cache.new_sequence(1)], ((0, num_tokens),))
        cos, sin = torch.ones(num_tokens, shape.head_size), torch.zeros(num_tokens, shape.head_size)
        arguments = (
            *attention.first_arguments, *attention.prompts_table.of_layer(0),
            *attention.merged_arguments(
                qkv.data_ptr(), width, cos.data_ptr(), sin.data_ptr(), SCORING, attended.data_ptr()
            ),
        )  # fmt: skip
        attention.prefill_kernel.write_prompts(1, *arguments)
        attention.prefill_kernel.attend_prompts(1, *arguments)
        yield attended

    def plain() -> Iterator[Tensor]:
        query, key, value = (
            each.view(1, num_tokens, shape.num_heads, -1).transpose(1, 2)
            for each in qkv.chunk(3, dim=1)
        )
        attended = attend_within(query, key, value, True, SCORING, None)
        yield attended[0].transpose(0, 1).flatten(1)

    return agrees("prompt attention", compiled, plain)
