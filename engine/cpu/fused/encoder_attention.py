"""EncoderAttention: compiled bidirectional attention of prompts to themselves, in an encoder.

The keys and values of a layer are overwritten by those of the next.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from engine.attention.base import Scoring, Spans
from engine.attention.prompt_attention import attend_within
from engine.cpu.fused.call_table import Call, CallTable
from engine.cpu.kernels import decode_attention, prefill_attention
from engine.cpu.self_test import agrees
from engine.cpu.thread_pool import FLOAT_BYTES

# The calls of a layer's attention, in their order.
ATTENTION = (prefill_attention.write_prompts, prefill_attention.attend_prompts)
NUM_FIRST = decode_attention.GROUP  # arguments, which differ from pass to pass


class EncoderAttention:
    """The keys and values of one layer's prompts, and the calls that attend to them."""

    def __init__(
        self, num_key_heads: int, head_size: int, num_tokens: int, num_threads: int
    ) -> None:
        """num_tokens: the most tokens of a pass"""
        self.num_key_heads, self.head_size = num_key_heads, head_size
        self.num_tokens, self.num_threads = num_tokens, num_threads
        # Each (heads, tokens, head size); a prompt has the columns that it has in the row.
        self.keys, self.values = torch.empty(2, num_key_heads * num_tokens * head_size)
        self.scratch = np.empty((num_threads, 0), np.float32)
        self.prompts = np.empty((0, decode_attention.NUM_CACHE_FIELDS), np.int64)

    def prepare(self, spans: Spans) -> tuple[int, ...]:
        """Prepare for prompts in these spans of a row. Returns the first arguments of each call."""
        of_token = self.head_size * FLOAT_BYTES
        keys, values = self.keys.data_ptr(), self.values.data_ptr()
        self.prompts = np.array(
            [
                (keys + begin * of_token, values + begin * of_token, self.num_tokens, 0, 1,
                 end - begin, begin, 0)
                for begin, end in spans
            ],
            np.int64,
        )  # fmt: skip
        longest = max(end - begin for begin, end in spans)
        width = prefill_attention.scratch_width(longest, self.head_size)
        if self.scratch.shape[1] < width:
            self.scratch = np.empty((self.num_threads, width), np.float32)
        return (
            self.num_key_heads, self.head_size, self.scratch.ctypes.data, self.scratch.shape[1],
            len(spans), self.prompts.ctypes.data,
        )  # fmt: skip

    def calls(
        self, qkv: int, width: int, cos: int, sin: int, scoring: Scoring, attended: int,
        bias: Tensor | None = None,
    ) -> list[Call]:  # fmt: skip
        """Return the calls of a layer, without the first arguments, which `prepare` returns.

        The arguments are those of `CpuAttentionBackend.merged_arguments`. A window extends in both
        directions, and its size does not count the token itself.

        cos, sin: addresses; 0: no rotary embedding
        bias:     from `FusedStack.distance_bias`, for the most tokens of a prompt; None: no bias
        """
        of_keys = self.num_key_heads * self.head_size
        keys, stride = qkv + width * FLOAT_BYTES, width + 2 * of_keys
        values = keys + of_keys * FLOAT_BYTES
        no_sinks, of_bias = 0, (0, 0) if bias is None else (bias.data_ptr(), bias.shape[1])
        back = ahead = decode_attention.UNBOUNDED
        if scoring.window is not None:
            back, ahead = scoring.window + 1, scoring.window
        arguments = (
            *(0,) * NUM_FIRST, width // of_keys, scoring.scale, qkv, stride, keys, stride, values,
            stride, attended, *of_bias, cos, sin, no_sinks, scoring.softcap or 0.0, ahead, back,
        )  # fmt: skip
        return [(each, arguments) for each in ATTENTION]


# Longer than the window: prompts of the self-test are mostly shorter than the model's own window.
SPANS, SCORING = ((0, 40), (40, 47)), Scoring(0.25, window=5, softcap=0.5)


def encoder_attention_agrees(num_key_heads: int, head_size: int) -> bool:
    """Return whether the compiled attention agrees with torch's, with a window and a soft cap."""
    num_tokens, width = SPANS[-1][1], 2 * num_key_heads * head_size
    draw = torch.Generator().manual_seed(0)
    qkv = torch.randn(num_tokens, 2 * width, generator=draw)

    def compiled() -> Iterator[Tensor]:
        attention = EncoderAttention(num_key_heads, head_size, num_tokens, num_threads=1)
        attended = torch.empty(num_tokens, width)
        cos, sin = torch.ones(num_tokens, head_size), torch.zeros(num_tokens, head_size)
        table = CallTable(
            attention.calls(
                qkv.data_ptr(), width, cos.data_ptr(), sin.data_ptr(), SCORING, attended.data_ptr()
            )
        )
        table.calls[:, 1 : 1 + NUM_FIRST] = attention.prepare(SPANS)
        table.run(1)
        yield attended

    def plain() -> Iterator[Tensor]:
        sizes = [2 * num_key_heads, num_key_heads, num_key_heads]
        query, key, value = qkv.view(1, num_tokens, -1, head_size).transpose(1, 2).split(sizes, 1)
        attended = []
        for begin, end in SPANS:
            mine = [each[:, :, begin:end] for each in (query, key, value)]
            attended.append(attend_within(mine[0], mine[1], mine[2], False, SCORING, None))
        yield torch.cat(attended, dim=2)[0].transpose(0, 1).flatten(1)

    return agrees("attention of an encoder", compiled, plain)
