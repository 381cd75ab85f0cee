"""FusedStep: a whole step of a model like LLaMA's as one table of compiled calls.

It takes the place of the model's own code where every linear layer is a packed gemm of ours:
nothing waits for Python between two calls, and the memory that they pass on is allocated once.
The same table serves prompts, rows that decode, and both in one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from engine.attention.base import Spans
from engine.attention.forward_context import DecoderContext
from engine.attention.prompt_attention import SeparatePrompts
from engine.cpu import packed_gemm
from engine.cpu.attention_backend import CpuAttentionBackend
from engine.cpu.call_table import Call, CallTable
from engine.cpu.kernels import (
    activation,
    decode_attention,
    gather_rows,
    prefill_attention,
    rms_norm,
)
from engine.cpu.merged_linear import LinearSlice
from engine.cpu.self_test import agrees
from engine.cpu.thread_pool import FLOAT_BYTES
from engine.kv_cache.contiguous import rounded_up

EMBED, COS, SIN, NUM_FIRST = range(4)  # the calls before the layers
# The calls of a layer, in their order. From GATHER_HIDDEN on, the last layer goes on with only
# the tokens whose logits are requested.
(
    INPUT_NORM, QKV, QUERY_NORM, KEY_NORM, DECODE, WRITE_PROMPTS, PREFILL, GATHER_HIDDEN,
    GATHER_ATTENDED, OUTPUT, POST_NORM, GATE_UP, ACTIVATION, DOWN,
    NUM_CALLS,
) = range(15)  # fmt: skip
NORM, HEAD, NUM_LAST = range(3)  # the calls after the layers
# Calls, and the argument of each that is the number of its rows.
ROW_COUNTS = (
    (INPUT_NORM, rms_norm.NUM_ROWS), (QKV, packed_gemm.NUM_ROWS),
    (QUERY_NORM, rms_norm.NUM_ROWS), (KEY_NORM, rms_norm.NUM_ROWS),
)  # fmt: skip
GATHERED_ROW_COUNTS = (
    (OUTPUT, packed_gemm.NUM_ROWS), (POST_NORM, rms_norm.NUM_ROWS),
    (GATE_UP, packed_gemm.NUM_ROWS), (ACTIVATION, activation.NUM_ROWS),
    (DOWN, packed_gemm.NUM_ROWS),
)  # fmt: skip
ATTENTION = slice(DECODE, PREFILL + 1)
GATHER = slice(GATHER_HIDDEN, GATHER_ATTENDED + 1)

LAYERS = frozenset(
    {"LlamaDecoderLayer", "MistralDecoderLayer", "Phi3DecoderLayer", "Qwen2DecoderLayer",
     "Qwen3DecoderLayer"}
)  # fmt: skip
# Other kinds of rotary embedding depend on the longest text of a step.
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
CAPACITY_MULTIPLE = 64  # of tokens and positions
NUM_TEST_TOKENS = 12

Ints = Sequence[int]


@dataclass(frozen=True, slots=True)
class Capacity:
    """The largest step that the buffers hold, and the number of threads they are made for."""

    tokens: int = 0
    logits: int = 0
    positions: int = 0
    threads: int = 0

    def holds(self, other: Self) -> bool:
        return self == self.grown(other)

    def grown(self, other: Self) -> Self:
        """Return the capacity that also holds `other`."""
        positions = self.positions
        if other.positions > positions:
            # Twice as many, for a prompt that is read in slices comes to a later one in each step.
            positions = rounded_up(max(other.positions, 2 * positions), CAPACITY_MULTIPLE)
        return type(self)(
            max(self.tokens, rounded_up(other.tokens, CAPACITY_MULTIPLE)),
            max(self.logits, other.logits),
            positions,
            other.threads,
        )


class Layer:
    """The parts of a decoder layer of `transformers` that the table calls."""

    def __init__(self, own: Any) -> None:
        """own: one of LAYERS"""
        self.qkv = merged_product(own.self_attn, "qkv_proj", "q_proj")
        self.output: Any = own.self_attn.o_proj
        self.gate_up = merged_product(own.mlp, "gate_up_proj", "gate_proj")
        self.down: Any = own.mlp.down_proj
        self.input_norm, self.post_norm = own.input_layernorm, own.post_attention_layernorm
        # Of each head, before it is rotated; None: there is none.
        self.query_norm: Any = getattr(own.self_attn, "q_norm", None)
        self.key_norm: Any = getattr(own.self_attn, "k_norm", None)

    @property
    def linears(self) -> tuple[Any, ...]:
        return self.qkv, self.output, self.gate_up, self.down

    @property
    def norms(self) -> tuple[Any, ...]:
        of_heads = [each for each in (self.query_norm, self.key_norm) if each is not None]
        return self.input_norm, self.post_norm, *of_heads


def merged_product(module: Any, name: str, first: str) -> Any:
    """Return the layer that multiplies for several: the module's own by that name, or the one that
    was made of them, of which `first` is a slice; None if there is neither."""
    part = getattr(module, first, None)
    return part.merged.linear if isinstance(part, LinearSlice) else getattr(module, name, None)


class FusedStep:
    """Runs steps for a decoder whose layers are `is_fusible`.

    It holds on to every tensor whose address is in the table.
    """

    def __init__(self, model: Any, attention: CpuAttentionBackend) -> None:
        decoder = model.get_decoder()
        self.attention = attention
        self.embedding: Tensor = decoder.embed_tokens.weight  # (vocab, width)
        self.rotary = decoder.rotary_emb
        self.layers = [Layer(each) for each in decoder.layers]
        self.scale = float(decoder.layers[0].self_attn.scaling)
        self.norm, self.head = decoder.norm, model.lm_head
        self.capacity = Capacity()

    def __call__(self, tokens: Ints, positions: Ints, logits_indices: Ints | None = None) -> Tensor:
        """Run a step for the rows that the attention holds, and for the prompts after them.

        tokens, positions: of the rows and then of the prompts' tokens
        logits_indices:    the tokens whose logits are requested, in order; None: all
        returns: (requested, vocab) float32, overwritten by the next step
        raises:  IndexError for a token without an embedding
        """
        ids, places = np.array(tokens), np.array(positions)
        indices = None if logits_indices is None else np.array(logits_indices)
        num_logits = len(ids if indices is None else indices)
        if not 0 <= ids.min() <= ids.max() < len(self.embedding):
            raise IndexError("a token that the model has no embedding of")
        self._reserve(
            Capacity(len(ids), num_logits, int(places.max()) + 1, torch.get_num_threads())
        )
        self.first[EMBED, gather_rows.INDEX] = ids.ctypes.data
        self.first[[COS, SIN], gather_rows.INDEX] = places.ctypes.data
        self.first[:, gather_rows.NUM_ROWS] = len(ids)
        for call, argument in ROW_COUNTS:
            self.arguments[:, call, argument] = len(ids)
        for call, argument in GATHERED_ROW_COUNTS:
            self.arguments[:-1, call, argument] = len(ids)
            self.arguments[-1, call, argument] = num_logits
        self.last[NORM, rms_norm.NUM_ROWS] = self.last[HEAD, packed_gemm.NUM_ROWS] = num_logits
        self._prepare_attention()
        self._prepare_gather(indices)
        self.table.run(self.capacity.threads)
        return self.logits[:num_logits]

    def _prepare_attention(self) -> None:
        attention = self.attention
        self.arguments[:, ATTENTION, : len(attention.first_arguments)] = attention.first_arguments
        for call, function, caches in (
            (DECODE, decode_attention.run, attention.rows_table),
            (WRITE_PROMPTS, prefill_attention.write_prompts, attention.prompts_table),
            (PREFILL, prefill_attention.attend_prompts, attention.prompts_table),
        ):
            self.functions[:, call] = function.address if caches.num_caches else 0
            self.arguments[:, call, decode_attention.NUM_SLOTS] = caches.num_caches
            self.arguments[:, call, decode_attention.SLOTS] = caches.of_layers()

    def _prepare_gather(self, indices: np.ndarray | None) -> None:
        """Let the last layer go on with the rows at the indices only; None: with all."""
        of_last = self.arguments[-1]
        self.functions[-1, GATHER] = 0 if indices is None else gather_rows.run.address
        if indices is not None:
            of_last[GATHER, gather_rows.INDEX] = indices.ctypes.data
            of_last[GATHER, gather_rows.NUM_ROWS] = len(indices)
        source = gather_rows.SOURCE if indices is None else gather_rows.OUT
        of_last[OUTPUT, packed_gemm.ROWS] = of_last[GATHER_ATTENDED, source]
        of_last[OUTPUT, packed_gemm.RESIDUAL] = of_last[GATHER_HIDDEN, source]

    def _reserve(self, needed: Capacity) -> None:
        """Allocate larger buffers, and a table that has their addresses, if they are needed."""
        if self.capacity.holds(needed):
            return
        self.capacity = capacity = self.capacity.grown(needed)
        self.buffers: list[Tensor] = []  # the old ones are freed before there are others
        layer = self.layers[0]
        width, head_size = self.embedding.shape[1], self.attention.shape.head_size
        self.buffers = [
            torch.empty(capacity.tokens * size)
            for size in (
                width, width, width,
                max(layer.qkv.out_features, layer.gate_up.out_features),
                max(layer.output.in_features, layer.down.in_features),
                head_size, head_size,
            )
        ]  # fmt: skip
        self.logits = torch.empty((capacity.logits, self.head.out_features))
        self.scratch = packed_gemm.new_scratch(capacity.threads)
        rotations = self.rotary(self.embedding, position_ids=torch.arange(capacity.positions)[None])
        self.rotations = [each.contiguous() for each in rotations]
        self._make_table(*(each.data_ptr() for each in self.buffers))

    def _make_table(
        self, hidden: int, middle: int, normed: int, wide: int, narrow: int, cos: int, sin: int
    ) -> None:
        """Fill in what stays from step to step; what changes is 0. All are addresses."""
        width, scratch = self.embedding.shape[1], self.scratch.ctypes.data
        all_cos, all_sin = (each.data_ptr() for each in self.rotations)
        head_size = self.attention.shape.head_size

        def norm(rows: int, module: Any) -> Call:
            weight, eps = module.weight.data_ptr(), module.variance_epsilon
            return rms_norm.run, (rows, weight, normed, 0, 1, width, width, eps)

        def norm_of_heads(heads: int, size: int, stride: int, module: Any) -> Call:
            """heads: the address of those of the first row; size: of all of a row's, in floats"""
            if module is None:
                return rms_norm.run, (0,) * rms_norm.NUM_ARGUMENTS
            weight, eps = module.weight.data_ptr(), module.variance_epsilon
            num_heads = size // head_size
            return rms_norm.run, (heads, weight, heads, 0, num_heads, head_size, stride, eps)

        def gemm(linear: Any, rows: int, residual: int, out: int) -> Call:
            return packed_gemm.run, linear.arguments(
                rows, linear.in_features, 0, residual, out, scratch
            )

        def calls_of(layer: Layer) -> list[Call]:
            attended, inner = layer.output.in_features, layer.down.in_features
            attention = self.attention.merged_arguments(
                wide, attended, cos, sin, self.scale, narrow
            )
            up, stride = wide + inner * FLOAT_BYTES, 2 * inner
            of_row = layer.qkv.out_features
            keys, of_keys = wide + attended * FLOAT_BYTES, (of_row - attended) // 2
            return [
                norm(hidden, layer.input_norm),
                gemm(layer.qkv, normed, 0, wide),
                norm_of_heads(wide, attended, of_row, layer.query_norm),
                norm_of_heads(keys, of_keys, of_row, layer.key_norm),
                *[(decode_attention.run, (0, 0, 0, 0, 0, 0, *attention))] * 3,
                (gather_rows.run, (hidden, 0, normed, 0, width)),
                (gather_rows.run, (narrow, 0, wide, 0, attended)),
                gemm(layer.output, narrow, hidden, middle),
                norm(middle, layer.post_norm),
                gemm(layer.gate_up, normed, 0, wide),
                (activation.run, (wide, up, narrow, 0, inner, stride, stride)),
                gemm(layer.down, narrow, middle, hidden),
            ]

        self.table = CallTable(
            [
                (gather_rows.run, (self.embedding.data_ptr(), 0, hidden, 0, width)),
                (gather_rows.run, (all_cos, 0, cos, 0, head_size)),
                (gather_rows.run, (all_sin, 0, sin, 0, head_size)),
                *(call for each in self.layers for call in calls_of(each)),
                norm(hidden, self.norm),
                gemm(self.head, normed, 0, self.logits.data_ptr()),
            ]
        )
        calls, num_layers = self.table.calls, len(self.layers)
        self.first, self.last = calls[:NUM_FIRST, 1:], calls[-NUM_LAST:, 1:]
        of_layers = calls[NUM_FIRST:-NUM_LAST].reshape(num_layers, NUM_CALLS, -1)
        # (layers, calls) and (layers, calls, arguments)
        self.functions, self.arguments = of_layers[:, :, 0], of_layers[:, :, 1:]
        self.functions[:, GATHER] = 0
        for call, absent in (
            (QUERY_NORM, [each.query_norm is None for each in self.layers]),
            (KEY_NORM, [each.key_norm is None for each in self.layers]),
        ):
            self.functions[absent, call] = 0


def fused_step_for(model: Any, attention: Any) -> FusedStep | None:
    """Return the fused step of a model; None where it does not fit or disagrees with the model.

    model: packed and fused; attention: its backend for a row's own tokens
    """
    if not isinstance(attention, CpuAttentionBackend) or not attention.has_prefill():
        return None
    # Its prompts see all before them: the self-test is shorter than most windows.
    if attention.windows or not can_be_fused(model, attention.shape.head_size):
        return None
    step = FusedStep(model, attention)

    def fused() -> Iterator[Tensor]:
        return trial_logits(
            attention, lambda trial: step(trial.ids, trial.positions, trial.indices)
        )

    def plain() -> Iterator[Tensor]:
        return trial_logits(attention, lambda trial: trial.logits_of(model))

    return step if agrees("fused step", fused, plain) else None


def can_be_fused(model: Any, head_size: int) -> bool:
    """Return whether the model consists of the parts that the table calls."""
    decoder = model.get_decoder()
    layers, head = getattr(decoder, "layers", ()), getattr(model, "lm_head", None)
    embedding = getattr(decoder, "embed_tokens", None)
    return (
        len(layers) > 0
        and all(map(is_fusible, layers))
        and type(embedding) is nn.Embedding
        and embedding.weight.dtype == torch.float32
        and embedding.weight.is_contiguous()
        and isinstance(decoder.norm, rms_norm.RMSNorm)
        and getattr(decoder.rotary_emb, "rope_type", None) in ROPE_TYPES
        and 2 * len(decoder.rotary_emb.inv_freq) == head_size  # all of a head is rotated
        and isinstance(head, packed_gemm.PackedGemmLinear)
    )


def is_fusible(own: Any) -> bool:
    """Return whether a decoder layer is of a known kind, with every part packed and fused."""
    if type(own).__name__ not in LAYERS:
        return False
    layer = Layer(own)
    return (
        isinstance(own.mlp, activation.SiluAndMulMLP | activation.MergedSiluAndMulMLP)
        and all(isinstance(each, rms_norm.RMSNorm) for each in layer.norms)
        and all(isinstance(each, packed_gemm.PackedGemmLinear) for each in layer.linears)
    )


@dataclass(frozen=True, slots=True)
class TrialStep:
    """A step of the self-test, for which the attention is prepared."""

    context: DecoderContext
    ids: list[int]
    positions: list[int]
    indices: list[int]

    def logits_of(self, model: Any) -> Tensor:
        """Return (indices, vocab), by the model's own code."""
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
