"""LayerCalls: lists the calls of a stack's layers, from which a fused step makes its table.

Arguments that change from step to step are 0 at first. Rows are given by addresses.
"""

from __future__ import annotations

from typing import Any

from engine.cpu import packed_experts, packed_gemm
from engine.cpu.fused.call_table import Call
from engine.cpu.fused.fused_layer import CrossAttention, FusedLayer, Mixture
from engine.cpu.fused.fused_stack import FusedStack
from engine.cpu.fused.step_buffers import StepBuffers
from engine.cpu.kernels import activation, gather_rows, rms_norm
from engine.cpu.kernels import routing as routing_kernels
from engine.cpu.thread_pool import FLOAT_BYTES

Place = tuple[int, int]  # the index of a call, and of one of its arguments


class LayerCalls:
    """The calls of a table in order, and the places of their numbers of rows."""

    def __init__(self, stack: FusedStack, buffers: StepBuffers) -> None:
        self.stack, self.buffers = stack, buffers
        # Swapped after a part that reads the one and writes the sum into the other.
        self.hidden, self.middle = buffers.hidden, buffers.middle
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

    def add_gather(
        self, source: int, out: int, size: int, scale: float = 1.0, of_requested: bool = False
    ) -> int:
        call = gather_rows.run, (source, 0, out, 0, size, scale)
        return self.add(call, gather_rows.NUM_ROWS, of_requested)

    def add_norm(
        self, rows: int, module: Any, out: int, residual: int = 0, of_requested: bool = False
    ) -> int:
        width, weight, eps = self.stack.width, module.weight.data_ptr(), module.variance_epsilon
        call = rms_norm.run, (rows, weight, out, 0, 1, width, width, eps, residual)
        return self.add(call, rms_norm.NUM_ROWS, of_requested)

    def add_norm_of_heads(self, heads: int, size: int, stride: int, module: Any) -> int:
        """Add a norm over each head.

        heads: the address of the heads of the first row
        size:  the floats of all heads of a row
        """
        weight, eps = module.weight.data_ptr(), module.variance_epsilon
        head_size = self.stack.head_size
        num_heads = size // head_size
        call = rms_norm.run, (heads, weight, heads, 0, num_heads, head_size, stride, eps, 0)
        return self.add(call, rms_norm.NUM_ROWS)

    def add_product(
        self, linear: Any, rows: int, out: int, residual: int = 0, of_requested: bool = False
    ) -> int:
        call = (
            packed_gemm.run,
            linear.arguments(rows, linear.in_features, 0, residual, out, self.buffers.scratch),
        )
        return self.add(call, packed_gemm.NUM_ROWS, of_requested)

    def add_embedding(self) -> tuple[int, list[int]]:
        """Add the embedding of a step's tokens and the rotations of its positions.

        Returns the indices of those calls, into which the tokens and the positions are written.
        """
        stack, buffers = self.stack, self.buffers
        embedding = self.add_gather(
            stack.embedding.data_ptr(), self.hidden, stack.width, stack.embedding_scale
        )
        rotations = [
            self.add_gather(whole.data_ptr(), own.data_ptr(), stack.head_size)
            for kind in stack.rotary_kinds
            for whole, own in zip(buffers.rotations[kind], buffers.own_rotations[kind], strict=True)
        ]
        return embedding, rotations

    def add_queries(self, layer: FusedLayer) -> None:
        """Add the projections to queries, keys and values."""
        wide, attended, of_row = (
            self.buffers.wide, layer.output.in_features, layer.qkv.out_features,
        )  # fmt: skip
        keys, of_keys = wide + attended * FLOAT_BYTES, (of_row - attended) // 2
        self.add_norm(self.hidden, layer.input_norm, self.buffers.normed)
        self.add_product(layer.qkv, self.buffers.normed, wide)
        for heads, size, module in (
            (wide, attended, layer.query_norm), (keys, of_keys, layer.key_norm),
        ):  # fmt: skip
            if module is not None:
                self.add_norm_of_heads(heads, size, of_row, module)

    def add_output(
        self, part: FusedLayer | CrossAttention, of_requested: bool = False
    ) -> list[Place]:
        """Add the output projection of attention, from `hidden` into `middle`.

        Returns the places of the residual and of the projection's rows.
        """
        narrow, norm = self.buffers.narrow, part.attended_norm
        residual = self.hidden if norm is None else 0
        at = self.add_product(part.output, narrow, self.middle, residual, of_requested)
        added = (at, packed_gemm.RESIDUAL)
        if norm is not None:
            after = self.add_norm(self.middle, norm, self.middle, self.hidden, of_requested)
            added = (after, rms_norm.RESIDUAL)
        return [added, (at, packed_gemm.ROWS)]

    def add_cross_queries(self, cross: CrossAttention) -> None:
        """Add the query projection of cross-attention, after `add_output`."""
        self.hidden, self.middle = self.middle, self.hidden
        self.add_norm(self.hidden, cross.input_norm, self.buffers.normed)
        self.add_product(cross.query, self.buffers.normed, self.buffers.wide)

    def add_mlp(self, layer: FusedLayer, of_requested: bool = False) -> None:
        """Add the feed-forward part, from `middle` into `hidden`."""
        assert layer.activation is not None
        buffers, middle, hidden = self.buffers, self.middle, self.hidden
        self.add_norm(middle, layer.mlp_norm, buffers.normed, 0, of_requested)
        if layer.mixture is not None:
            self._add_mixture(layer.mixture, layer.activation, of_requested)
            return
        inner, norm = layer.down.in_features, layer.mlp_output_norm
        self.add_product(layer.gate_up, buffers.normed, buffers.wide, 0, of_requested)
        activated = self._activation(inner, layer.activation, layer.gate_up.out_features)
        self.add(activated, activation.NUM_ROWS, of_requested)
        residual = middle if norm is None else 0
        self.add_product(layer.down, buffers.narrow, hidden, residual, of_requested)
        if norm is not None:
            self.add_norm(hidden, norm, hidden, middle, of_requested)

    def _activation(self, inner: int, kind: int, stride: int) -> Call:
        """Return the call of an activation.

        inner:  the number of floats of a row's gate; `up`, if there is one, follows it
        stride: the distance between two rows, in floats
        """
        wide = self.buffers.wide
        up = wide + inner * FLOAT_BYTES
        return activation.run, (wide, up, self.buffers.narrow, 0, inner, stride, stride, kind)

    def _add_mixture(self, mixture: Mixture, kind: int, of_requested: bool) -> None:
        buffers, routing = self.buffers, self.buffers.routing
        assert routing is not None
        width, chosen, found = self.stack.width, mixture.num_chosen, routing.by_expert.data_ptr()
        arguments = routing.arguments(mixture, self.middle, self.hidden, width)
        groups = (buffers.scratch, mixture.num_experts, routing.groups.data_ptr())
        first = mixture.first.arguments(found, buffers.wide, *groups)
        second = mixture.second.arguments(buffers.narrow, found, *groups)
        sorted_rows = (buffers.normed, routing.row_of.data_ptr(), found, 0, width, 1.0)
        scores = routing.scores.data_ptr()
        self.add_product(mixture.router, buffers.normed, scores, 0, of_requested)
        self.add((routing_kernels.choose, arguments), routing_kernels.NUM_ROWS, of_requested)
        self.add((routing_kernels.group, arguments), routing_kernels.NUM_ROWS, of_requested)
        self.add((gather_rows.run, sorted_rows), gather_rows.NUM_ROWS, of_requested, chosen)
        self.add_as_is((packed_experts.run, first))
        inner = mixture.second.depth
        activated = self._activation(inner, kind, 2 * inner)
        self.add(activated, activation.NUM_ROWS, of_requested, chosen)
        self.add_as_is((packed_experts.run, second))
        self.add((routing_kernels.combine, arguments), routing_kernels.NUM_ROWS, of_requested)
