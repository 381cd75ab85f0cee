"""FusedStep: a whole step of a model like LLaMA's as one table of compiled calls.

It takes the place of the model's own code where every linear layer is a packed gemm of ours:
nothing waits for Python between two calls, and the memory that they pass on is allocated once.
The same table serves prompts, rows that decode, and both in one step. What a layer consists of is
said by its `FusedLayer`; the last one goes on, after its attention, with only the tokens whose
logits are requested.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from engine.attention.layers import decoder_calls
from engine.cpu import packed_experts, packed_gemm
from engine.cpu.attention_backend import CpuAttentionBackend
from engine.cpu.call_table import Call, CallTable
from engine.cpu.fused_layer import LAYERS, FusedLayer, Mixture
from engine.cpu.fused_trial import prompt_attention_agrees, trial_logits
from engine.cpu.kernels import (
    activation,
    decode_attention,
    gather_rows,
    prefill_attention,
    rms_norm,
    softcap,
)
from engine.cpu.kernels import routing as routing_kernels
from engine.cpu.self_test import agrees
from engine.cpu.thread_pool import FLOAT_BYTES
from engine.kv_cache.layer_group import rounded_up

# Other kinds of rotary embedding depend on the longest text of a step.
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
SCALED_EMBEDDINGS = frozenset(
    {"GemmaTextScaledWordEmbedding", "Gemma2TextScaledWordEmbedding",
     "Gemma3TextScaledWordEmbedding"}
)  # fmt: skip
# The calls of a layer's attention, in their order.
ATTENTION = (
    decode_attention.run,
    prefill_attention.write_prompts,
    prefill_attention.attend_prompts,
)
CAPACITY_MULTIPLE = 64  # of tokens and positions

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


class Calls:
    """The calls of a table, in their order, and where in it numbers of rows are to be written."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        # The index of a call and of the argument that is the number of its rows, by whether that
        # is of all tokens, or of those whose logits are requested.
        # And how many rows a token is in that call.
        self.row_counts: dict[bool, list[tuple[int, int, int]]] = {False: [], True: []}

    def add(
        self, call: Call, num_rows_at: int, of_requested: bool = False, rows_a_token: int = 1
    ) -> int:
        """Add a call whose argument at `num_rows_at` is the number of rows; returns its index."""
        self.row_counts[of_requested].append((len(self.calls), 1 + num_rows_at, rows_a_token))
        return self.add_as_is(call)

    def add_as_is(self, call: Call) -> int:
        self.calls.append(call)
        return len(self.calls) - 1


class Routing:
    """The memory in which the rows of a step are routed to experts and back."""

    def __init__(self, mixtures: list[Mixture], num_tokens: int) -> None:
        num_experts = max(each.num_experts for each in mixtures)
        num_choices = num_tokens * max(each.num_chosen for each in mixtures)
        width = mixtures[0].second.width
        self.scores = torch.empty(num_tokens * num_experts)
        self.weights = torch.empty(num_choices)
        self.experts, self.row_of, self.place_of = (
            torch.empty(num_choices, dtype=torch.int64) for _ in range(3)
        )
        self.groups = torch.empty(2 * num_experts, dtype=torch.int64)
        self.by_expert = torch.empty(num_choices * width)  # rows, and then what experts give

    def arguments(self, mixture: Mixture, residual: int, out: int, width: int) -> tuple[int, ...]:
        """Return what the functions of `kernels.routing` take. residual, out: addresses"""
        places = (
            self.scores, self.experts, self.weights, self.row_of, self.place_of, self.groups,
            self.by_expert,
        )  # fmt: skip
        return (
            0, mixture.num_experts, mixture.num_chosen, int(mixture.is_normalized),
            *(each.data_ptr() for each in places), residual, out, width,
        )  # fmt: skip


class FusedStep:
    """Runs steps for a decoder whose layers are fusible.

    It holds on to every tensor whose address is in the table.
    """

    def __init__(
        self, model: Any, attention: CpuAttentionBackend, layers: list[FusedLayer]
    ) -> None:
        decoder = model.get_decoder()
        self.attention, self.layers = attention, layers
        self.embedding: Tensor = decoder.embed_tokens.weight  # (vocab, width)
        self.embedding_scale = embedding_scale_of(decoder.embed_tokens)
        self.rotary = decoder.rotary_emb
        self.rotary_kinds = sorted({each.rotary_kind for each in layers}, key=str)
        self.norm, self.head = decoder.norm, model.lm_head
        config = model.config.get_text_config(decoder=True)
        self.logits_softcap: float | None = getattr(config, "final_logit_softcapping", None)
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
        calls = self.table.calls
        calls[self.embed_at, 1 + gather_rows.INDEX] = ids.ctypes.data
        calls[self.rotations_at, 1 + gather_rows.INDEX] = places.ctypes.data
        for (at, arguments, rows_a_token), num_tokens in zip(
            self.row_counts, (len(ids), num_logits), strict=True
        ):
            calls[at, arguments] = num_tokens * rows_a_token
        self._prepare_attention()
        self._prepare_gather(indices)
        self.table.run(self.capacity.threads)
        return self.logits[:num_logits]

    def _prepare_attention(self) -> None:
        attention, calls = self.attention, self.table.calls
        first = attention.first_arguments
        calls[self.attention_at, 1 : 1 + len(first)] = first
        for indices, function, caches in zip(
            self.attention_at, ATTENTION,
            (attention.rows_table, attention.prompts_table, attention.prompts_table), strict=True,
        ):  # fmt: skip
            calls[indices, 0] = function.address if caches.num_caches else 0
            calls[indices, 1 + decode_attention.NUM_CACHES] = caches.num_caches
            calls[indices, 1 + decode_attention.CACHES] = caches.of_layers()

    def _prepare_gather(self, indices: np.ndarray | None) -> None:
        """Let the last layer go on with the rows at the indices only; None: with all."""
        calls, gathers = self.table.calls, self.gathers_at
        calls[gathers, 0] = 0 if indices is None else gather_rows.run.address
        if indices is not None:
            calls[gathers, 1 + gather_rows.INDEX] = indices.ctypes.data
        source = gather_rows.SOURCE if indices is None else gather_rows.OUT
        calls[self.gathered_at] = calls[gathers, 1 + source]

    def _reserve(self, needed: Capacity) -> None:
        """Allocate larger buffers, and a table that has their addresses, if they are needed."""
        if self.capacity.holds(needed):
            return
        self.capacity = capacity = self.capacity.grown(needed)
        self.buffers: list[Tensor] = []  # the old ones are freed before there are others
        width, head_size = self.embedding.shape[1], self.attention.shape.head_size
        self.buffers = [
            torch.empty(capacity.tokens * size)
            for size in (
                width, width, width,
                max(each.wide for each in self.layers),
                max(each.narrow for each in self.layers),
            )
        ]  # fmt: skip
        self.logits = torch.empty((capacity.logits, self.head.out_features))
        self.scratch = packed_gemm.new_scratch(capacity.threads)
        # By the kind of rotary embedding: cosines and sines of all positions, and of a step's.
        self.rotations = {
            kind: [each.contiguous() for each in self._rotations(kind, capacity.positions)]
            for kind in self.rotary_kinds
        }
        self.own_rotations = {
            kind: [torch.empty(capacity.tokens * head_size) for _ in range(2)]
            for kind in self.rotary_kinds
        }
        mixtures = [each.mixture for each in self.layers if each.mixture is not None]
        # One for all, since a layer is done with it before the next.
        self.routing = Routing(mixtures, capacity.tokens) if mixtures else None
        self._make_table(*(each.data_ptr() for each in self.buffers))

    def _rotations(self, kind: str | None, num_positions: int) -> tuple[Tensor, Tensor]:
        """Return the cosines and the sines of all positions: (1, positions, head size)."""
        positions = torch.arange(num_positions)[None]
        named = {} if kind is None else {"layer_type": kind}
        cos, sin = self.rotary(self.embedding, position_ids=positions, **named)
        return cos, sin

    def _make_table(self, hidden: int, middle: int, normed: int, wide: int, narrow: int) -> None:
        """Fill in what stays from step to step; what changes is 0. All are addresses."""
        width, scratch = self.embedding.shape[1], self.scratch.ctypes.data
        head_size = self.attention.shape.head_size
        calls = Calls()

        def gather(source: int, out: int, size: int, scale: float = 1.0) -> Call:
            return gather_rows.run, (source, 0, out, 0, size, scale)

        def norm(rows: int, module: Any, out: int, residual: int = 0) -> Call:
            weight, eps = module.weight.data_ptr(), module.variance_epsilon
            return rms_norm.run, (rows, weight, out, 0, 1, width, width, eps, residual)

        def norm_of_heads(heads: int, size: int, stride: int, module: Any) -> Call:
            """heads: the address of those of the first row; size: of all of a row's, in floats"""
            weight, eps = module.weight.data_ptr(), module.variance_epsilon
            num_heads = size // head_size
            return rms_norm.run, (heads, weight, heads, 0, num_heads, head_size, stride, eps, 0)

        def gemm(linear: Any, rows: int, residual: int, out: int) -> Call:
            return packed_gemm.run, linear.arguments(
                rows, linear.in_features, 0, residual, out, scratch
            )

        def add_attention(layer: FusedLayer) -> list[int]:
            """Add the calls up to the attention's; returns the indices of those."""
            attended, of_row = layer.output.in_features, layer.qkv.out_features
            keys, of_keys = wide + attended * FLOAT_BYTES, (of_row - attended) // 2
            calls.add(norm(hidden, layer.input_norm, normed), rms_norm.NUM_ROWS)
            calls.add(gemm(layer.qkv, normed, 0, wide), packed_gemm.NUM_ROWS)
            for heads, size, module in (
                (wide, attended, layer.query_norm), (keys, of_keys, layer.key_norm),
            ):  # fmt: skip
                if module is not None:
                    calls.add(norm_of_heads(heads, size, of_row, module), rms_norm.NUM_ROWS)
            cos, sin = (each.data_ptr() for each in self.own_rotations[layer.rotary_kind])
            arguments = self.attention.merged_arguments(
                wide, attended, cos, sin, layer.scoring, narrow
            )
            return [calls.add_as_is((each, (0, 0, 0, 0, 0, 0, *arguments))) for each in ATTENTION]

        def add_output(layer: FusedLayer, is_last: bool) -> list[tuple[int, int]]:
            """Add the product with what is attended to; returns the index of the call and of the
            argument that reads the hidden states, and then those that read the attended."""
            if layer.attended_norm is None:
                at = calls.add(
                    gemm(layer.output, narrow, hidden, middle), packed_gemm.NUM_ROWS, is_last
                )
                residual = (at, packed_gemm.RESIDUAL)
            else:
                at = calls.add(gemm(layer.output, narrow, 0, middle), packed_gemm.NUM_ROWS, is_last)
                added = norm(middle, layer.attended_norm, middle, hidden)
                residual = (calls.add(added, rms_norm.NUM_ROWS, is_last), rms_norm.RESIDUAL)
            return [residual, (at, packed_gemm.ROWS)]

        def add_mixture(mixture: Mixture, kind: int, is_last: bool) -> None:
            assert self.routing is not None
            chosen, inner = mixture.num_chosen, mixture.second.depth
            routing, found = self.routing, self.routing.by_expert.data_ptr()
            arguments = routing.arguments(mixture, middle, hidden, width)
            groups = (mixture.num_experts, routing.groups.data_ptr())
            first = mixture.first.arguments(found, wide, scratch, *groups)
            second = mixture.second.arguments(narrow, found, scratch, *groups)
            up, stride = wide + inner * FLOAT_BYTES, 2 * inner
            sorted_rows = (normed, routing.row_of.data_ptr(), found, 0, width, 1.0)
            router = gemm(mixture.router, normed, 0, routing.scores.data_ptr())
            calls.add(router, packed_gemm.NUM_ROWS, is_last)
            calls.add((routing_kernels.choose, arguments), routing_kernels.NUM_ROWS, is_last)
            calls.add((routing_kernels.group, arguments), routing_kernels.NUM_ROWS, is_last)
            calls.add((gather_rows.run, sorted_rows), gather_rows.NUM_ROWS, is_last, chosen)
            calls.add_as_is((packed_experts.run, first))
            activated = (wide, up, narrow, 0, inner, stride, stride, kind)
            calls.add((activation.run, activated), activation.NUM_ROWS, is_last, chosen)
            calls.add_as_is((packed_experts.run, second))
            calls.add((routing_kernels.combine, arguments), routing_kernels.NUM_ROWS, is_last)

        def add_mlp(layer: FusedLayer, is_last: bool) -> None:
            assert layer.activation is not None
            calls.add(norm(middle, layer.mlp_norm, normed), rms_norm.NUM_ROWS, is_last)
            if layer.mixture is not None:
                add_mixture(layer.mixture, layer.activation, is_last)
                return
            inner, has_norm = layer.down.in_features, layer.mlp_output_norm is not None
            up, stride = wide + inner * FLOAT_BYTES, 2 * inner
            activated = (wide, up, narrow, 0, inner, stride, stride, layer.activation)
            down = gemm(layer.down, narrow, 0 if has_norm else middle, hidden)
            calls.add(gemm(layer.gate_up, normed, 0, wide), packed_gemm.NUM_ROWS, is_last)
            calls.add((activation.run, activated), activation.NUM_ROWS, is_last)
            calls.add(down, packed_gemm.NUM_ROWS, is_last)
            if has_norm:
                added = norm(hidden, layer.mlp_output_norm, hidden, middle)
                calls.add(added, rms_norm.NUM_ROWS, is_last)

        embedding = gather(self.embedding.data_ptr(), hidden, width, self.embedding_scale)
        self.embed_at = calls.add(embedding, gather_rows.NUM_ROWS)
        self.rotations_at = [
            calls.add(gather(whole.data_ptr(), own.data_ptr(), head_size), gather_rows.NUM_ROWS)
            for kind in self.rotary_kinds
            for whole, own in zip(self.rotations[kind], self.own_rotations[kind], strict=True)
        ]
        attention_at = []
        for layer in self.layers[:-1]:
            attention_at.append(add_attention(layer))
            add_output(layer, is_last=False)
            add_mlp(layer, is_last=False)
        last = self.layers[-1]
        attention_at.append(add_attention(last))
        # What is read is in another place where it is gathered.
        self.gathers_at = [
            calls.add(gather(source, out, size), gather_rows.NUM_ROWS, of_requested=True)
            for source, out, size in (
                (hidden, normed, width), (narrow, wide, last.output.in_features),
            )
        ]  # fmt: skip
        gathered = add_output(last, is_last=True)
        add_mlp(last, is_last=True)
        calls.add(norm(hidden, self.norm, normed), rms_norm.NUM_ROWS, of_requested=True)
        logits = self.logits.data_ptr()
        calls.add(gemm(self.head, normed, 0, logits), packed_gemm.NUM_ROWS, of_requested=True)
        if self.logits_softcap is not None:
            bounded = (logits, 0, self.head.out_features, self.logits_softcap)
            calls.add((softcap.run, bounded), softcap.NUM_ROWS, of_requested=True)
        self.table = CallTable(calls.calls)
        self.attention_at = np.array(attention_at).T  # (3, layers)
        self.gathered_at = tuple(np.array([(call, 1 + each) for call, each in gathered]).T)
        self.row_counts = [np.array(calls.row_counts[each]).T for each in (False, True)]


def fused_step_for(model: Any, attention: Any) -> FusedStep | None:
    """Return the fused step of a model; None where it does not fit or disagrees with the model.

    model: packed and fused; attention: its backend for a row's own tokens
    """
    if not isinstance(attention, CpuAttentionBackend) or not attention.has_prefill():
        return None
    if not can_be_fused(model):
        return None
    layers = layers_of(model)
    if not all(each.is_fusible() for each in layers):
        return None
    if not is_rotated(model, layers, attention.shape.head_size):
        return None
    if not prompt_attention_agrees(attention):
        return None
    step = FusedStep(model, attention, layers)

    def fused() -> Iterator[Tensor]:
        return trial_logits(
            attention, lambda trial: step(trial.ids, trial.positions, trial.indices)
        )

    def plain() -> Iterator[Tensor]:
        return trial_logits(attention, lambda trial: trial.logits_of(model))

    return step if agrees("fused step", fused, plain) else None


def can_be_fused(model: Any) -> bool:
    """Return whether the model's layers are of a known kind, between parts that the table calls."""
    decoder = model.get_decoder()
    layers, head = getattr(decoder, "layers", ()), getattr(model, "lm_head", None)
    embedding: Any = getattr(decoder, "embed_tokens", None)
    return (
        len(layers) > 0
        and all(type(each).__name__ in LAYERS for each in layers)
        and (type(embedding) is nn.Embedding or type(embedding).__name__ in SCALED_EMBEDDINGS)
        and embedding.weight.dtype == torch.float32
        and embedding.weight.is_contiguous()
        and isinstance(decoder.norm, rms_norm.RMSNorm)
        and isinstance(head, packed_gemm.PackedGemmLinear)
    )


def layers_of(model: Any) -> list[FusedLayer]:
    """Return the layers of a model of which `can_be_fused` is true."""
    decoder = model.get_decoder()
    calls = decoder_calls(model).layers(1)
    has_kinds = isinstance(getattr(decoder.rotary_emb, "rope_type", None), dict)
    kinds = decoder.config.layer_types if has_kinds else [None] * len(calls)
    return [
        FusedLayer(own, call.scoring, kind)
        for own, (call,), kind in zip(decoder.layers, calls, kinds, strict=True)
    ]


def is_rotated(model: Any, layers: list[FusedLayer], head_size: int) -> bool:
    """Return whether all of a head is rotated, by angles that depend on its position only."""
    rotary = model.get_decoder().rotary_emb
    types = getattr(rotary, "rope_type", None)
    for kind in {each.rotary_kind for each in layers}:
        rope_type = types if kind is None else types.get(kind)  # type: ignore[union-attr]  # a dict
        frequencies = getattr(rotary, "inv_freq" if kind is None else f"{kind}_inv_freq", ())
        if rope_type not in ROPE_TYPES or 2 * len(frequencies) != head_size:
            return False
    return True


def embedding_scale_of(embedding: Any) -> float:
    return float(getattr(embedding, "embed_scale", 1.0))
