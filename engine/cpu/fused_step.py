"""FusedStep: a step of a model like LLaMA's as one chain of compiled calls.

What `llama_layer` does layer by layer, and all that is before and behind it, where every
product has panels: nobody waits for Python between two calls, and the memory that they pass
on is made once. Importing this fails where `panels` does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from engine.attention.forward_context import DecoderContext
from engine.attention.prompt_attention import SeparatePrompts
from engine.cpu import packed_gemm
from engine.cpu.attention_backend import CpuAttentionBackend
from engine.cpu.call_table import Call, Chain
from engine.cpu.kernels import (
    activation,
    decode_attention,
    gather_rows,
    prefill_attention,
    rms_norm,
)
from engine.cpu.llama_layer import LlamaLayer
from engine.cpu.thread_pool import FLOAT_BYTES
from engine.kv_cache.contiguous import rounded_up

log = logging.getLogger(__name__)

EMBED, COS, SIN, NUM_FIRST = range(4)  # before the layers
# The calls of a layer, in their order. From PICK on, the last layer goes on with only the
# tokens whose logits are asked for.
(
    BEFORE, JOIN, ATTEND_ROWS, KEEP_PROMPTS, ATTEND_PROMPTS, PICK, PICK_ATTENDED, TO_WIDTH,
    AFTER, TO_GATES, GATE, DOWN,
    NUM_CALLS,
) = range(13)  # fmt: skip
NORM, HEAD, NUM_LAST = range(3)  # behind the layers
# Where a call is told how many rows there are.
ROWS_TOLD = ((BEFORE, rms_norm.NUM_ROWS), (JOIN, packed_gemm.NUM_ROWS))
PICKED_ROWS_TOLD = (
    (TO_WIDTH, packed_gemm.NUM_ROWS), (AFTER, rms_norm.NUM_ROWS), (TO_GATES, packed_gemm.NUM_ROWS),
    (GATE, activation.NUM_ROWS), (DOWN, packed_gemm.NUM_ROWS),
)  # fmt: skip
ATTENDING, PICKING = slice(ATTEND_ROWS, ATTEND_PROMPTS + 1), slice(PICK, PICK_ATTENDED + 1)

ROOM = 64  # for a multiple of so many tokens and positions
# Others turn by angles that depend on the longest text of a step.
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
NUM_TRIED = 12  # tokens

Ints = Sequence[int]


@dataclass(frozen=True, slots=True)
class Room:
    """For so many of each at most, and for just so many threads."""

    tokens: int = 0
    asked: int = 0
    positions: int = 0
    threads: int = 0

    def holds(self, other: Self) -> bool:
        return self == self.grown(other)

    def grown(self, other: Self) -> Self:
        return type(self)(
            max(self.tokens, rounded_up(other.tokens, ROOM)),
            max(self.asked, other.asked),
            max(self.positions, rounded_up(other.positions, ROOM)),
            other.threads,
        )


class FusedStep:
    def __init__(self, model: Any, attention: CpuAttentionBackend) -> None:
        """model: all of whose layers are LlamaLayers, and whose products have panels"""
        decoder = model.get_decoder()
        self.attention = attention
        self.embedding: Tensor = decoder.embed_tokens.weight
        self.rotary = decoder.rotary_emb
        self.layers: list[LlamaLayer] = list(decoder.layers)
        self.scale = self.layers[0].attention[2]
        self.norm, self.head = decoder.norm, model.lm_head
        self.room = Room()

    def __call__(self, tokens: Ints, positions: Ints, asked: Ints | None = None) -> Tensor:
        """tokens, positions: of the rows that the attention holds, and of the prompts after them
        asked:   those whose logits are asked for; None: all
        returns: (asked, vocab), good until the next step
        """
        ids, places = np.array(tokens), np.array(positions)
        picked = None if asked is None else np.array(asked)
        num_asked = len(ids if picked is None else picked)
        if not 0 <= ids.min() <= ids.max() < len(self.embedding):
            raise IndexError("a token that the model has no embedding of")
        self._make_room(Room(len(ids), num_asked, int(places.max()) + 1, torch.get_num_threads()))
        self.first[EMBED, gather_rows.INDEX] = ids.ctypes.data
        self.first[[COS, SIN], gather_rows.INDEX] = places.ctypes.data
        self.first[:, gather_rows.NUM_ROWS] = len(ids)
        for call, place in ROWS_TOLD:
            self.told[:, call, place] = len(ids)
        for call, place in PICKED_ROWS_TOLD:
            self.told[:-1, call, place], self.told[-1, call, place] = len(ids), num_asked
        self.last[NORM, rms_norm.NUM_ROWS] = self.last[HEAD, packed_gemm.NUM_ROWS] = num_asked
        self._tell_attention()
        self._tell_picked(picked)
        self.chain.run(self.room.threads)
        return self.logits[:num_asked]

    def _tell_attention(self) -> None:
        attention = self.attention
        self.told[:, ATTENDING, : len(attention.unchanging)] = attention.unchanging
        for call, function, table in (
            (ATTEND_ROWS, attention.run, attention.rows_table),
            (KEEP_PROMPTS, prefill_attention.keep_prompts, attention.prompts_table),
            (ATTEND_PROMPTS, prefill_attention.attend_prompts, attention.prompts_table),
        ):
            self.functions[:, call] = function.address if table.num_slots else 0
            self.told[:, call, decode_attention.NUM_SLOTS] = table.num_slots
            self.told[:, call, decode_attention.SLOTS] = table.of_layers()

    def _tell_picked(self, picked: np.ndarray | None) -> None:
        of_last = self.told[-1]
        self.functions[-1, PICKING] = 0 if picked is None else gather_rows.run.address
        if picked is not None:
            of_last[PICKING, gather_rows.INDEX] = picked.ctypes.data
            of_last[PICKING, gather_rows.NUM_ROWS] = len(picked)
        taken_from = gather_rows.SOURCE if picked is None else gather_rows.OUT
        of_last[TO_WIDTH, packed_gemm.ROWS] = of_last[PICK_ATTENDED, taken_from]
        of_last[TO_WIDTH, packed_gemm.OTHERS] = of_last[PICK, taken_from]

    def _make_room(self, needed: Room) -> None:
        """Memory, and calls that know where it is."""
        if self.room.holds(needed):
            return
        self.room = room = self.room.grown(needed)
        self.buffers: list[Tensor] = []  # the old ones go before there are others
        products: Any = self.layers[0].products
        join, to_width, to_gates, down = products
        width, head_size = self.embedding.shape[1], self.attention.shape.head_size
        self.buffers = [
            torch.empty(room.tokens * size)
            for size in (
                width, width, width,
                max(join.out_features, to_gates.out_features),
                max(to_width.in_features, down.in_features),
                head_size, head_size,
            )
        ]  # fmt: skip
        self.logits = torch.empty((room.asked, self.head.out_features))
        self.scratch = packed_gemm.new_scratch(room.threads)
        turns = self.rotary(self.embedding, position_ids=torch.arange(room.positions)[None])
        self.turns = [each.contiguous() for each in turns]
        self._make_chain(*(each.data_ptr() for each in self.buffers))

    def _make_chain(
        self, hidden: int, middle: int, normed: int, wide: int, narrow: int, cos: int, sin: int
    ) -> None:
        """What stays from step to step; zeros are told in each. All are addresses."""
        width, scratch = self.embedding.shape[1], self.scratch.ctypes.data
        all_cos, all_sin = (each.data_ptr() for each in self.turns)
        head_size = self.attention.shape.head_size

        def norm(rows: int, weight: Tensor, eps: float) -> Call:
            return rms_norm.run, (rows, weight.data_ptr(), normed, 0, width, eps)

        def product(linear: Any, rows: int, others: int, out: int) -> Call:
            return packed_gemm.run, linear.told(rows, linear.in_features, 0, others, out, scratch)

        def layer(products: tuple[Any, ...], norms: tuple[Any, ...]) -> list[Call]:
            (join, to_width, to_gates, down), (before, after) = products, norms
            attended, inner = to_width.in_features, down.in_features
            turned = self.attention.told_turned(wide, attended, cos, sin, self.scale, narrow)
            up, stride = wide + inner * FLOAT_BYTES, 2 * inner
            return [
                norm(hidden, *before),
                product(join, normed, 0, wide),
                *[(self.attention.run, (0, 0, 0, 0, 0, 0, *turned))] * 3,
                (gather_rows.run, (hidden, 0, normed, 0, width)),
                (gather_rows.run, (narrow, 0, wide, 0, attended)),
                product(to_width, narrow, hidden, middle),
                norm(middle, *after),
                product(to_gates, normed, 0, wide),
                (activation.run, (wide, up, narrow, 0, inner, stride, stride)),
                product(down, narrow, middle, hidden),
            ]

        self.chain = Chain(
            [
                (gather_rows.run, (self.embedding.data_ptr(), 0, hidden, 0, width)),
                (gather_rows.run, (all_cos, 0, cos, 0, head_size)),
                (gather_rows.run, (all_sin, 0, sin, 0, head_size)),
                *(call for each in self.layers for call in layer(each.products, each.norms)),
                norm(hidden, self.norm.weight, self.norm.variance_epsilon),
                product(self.head, normed, 0, self.logits.data_ptr()),
            ]
        )
        calls, num_layers = self.chain.calls, len(self.layers)
        self.first, self.last = calls[:NUM_FIRST, 1:], calls[-NUM_LAST:, 1:]
        of_layers = calls[NUM_FIRST:-NUM_LAST].reshape(num_layers, NUM_CALLS, -1)
        # (layers, calls), (layers, calls, numbers)
        self.functions, self.told = of_layers[:, :, 0], of_layers[:, :, 1:]
        self.functions[:, PICKING] = 0


def fused_step_for(model: Any, attention: Any) -> FusedStep | None:
    """One, if the model has what it is made of, and gives the same so."""
    if not can_be_fused(model):
        return None
    chain = FusedStep(model, attention)
    if does_the_same(chain, model):
        return chain
    log.warning("not chained: it does something else", extra={"kind": type(model).__name__})
    return None


def can_be_fused(model: Any) -> bool:
    decoder = model.get_decoder()
    layers, head = getattr(decoder, "layers", ()), getattr(model, "lm_head", None)
    if not len(layers) or not all(isinstance(each, LlamaLayer) for each in layers):
        return False
    embedding = getattr(decoder, "embed_tokens", None)
    return (
        type(embedding) is nn.Embedding
        and embedding.weight.dtype == torch.float32
        and embedding.weight.is_contiguous()
        and type(decoder.norm).__name__ == "RMSNorm"
        and getattr(decoder.rotary_emb, "rope_type", None) in ROPE_TYPES
        and all(
            isinstance(product, packed_gemm.PackedGemmLinear)
            for product in (head, *(each for layer in layers for each in layer.products))
        )
    )


@torch.inference_mode()
def does_the_same(chain: FusedStep, model: Any) -> bool:
    """For a prompt, and for one more token with another prompt beside it."""
    attention = chain.attention
    draw = torch.Generator().manual_seed(0)
    half, vocab_size = NUM_TRIED // 2, len(chain.embedding)
    tokens = torch.randint(0, vocab_size, (NUM_TRIED,), generator=draw).tolist()
    new_sequence = attention.kv_cache.new_sequence
    first, second = new_sequence(1), new_sequence(2)

    def is_same(
        context: DecoderContext, positions: list[int], asked: list[int] | None = None
    ) -> bool:
        ids = tokens[: len(positions)]
        expected = model(
            torch.tensor([ids]),
            position_ids=torch.tensor([positions]),
            attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool),  # looked at by nobody
            use_cache=False,
            forward_context=context,
        ).logits[0]
        found = chain(ids, positions, asked)
        return torch.allclose(found, expected[asked or slice(None)], rtol=1e-4, atol=1e-4)

    try:
        spans = ((0, half),)
        attention.prepare([], [first], spans)
        if not is_same(DecoderContext(attention, SeparatePrompts(spans)), list(range(half))):
            return False
        first.commit_prompt(half)
        spans = ((0, NUM_TRIED - 1),)
        attention.prepare([first], [second], spans)
        context = DecoderContext(attention, SeparatePrompts(spans), num_decode_tokens=1)
        return is_same(context, [half, *range(NUM_TRIED - 1)], [0, NUM_TRIED - 1])
    except Exception:  # it wants or returns something else
        return False
