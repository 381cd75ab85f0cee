"""PackedExperts: a mixture's experts, each multiplied with the rows that chose it.

Rows are sorted by expert, and one compiled call multiplies all of them, so that an expert's weights
are read once in a step, and not at all if no row chose it. It replaces the experts of
`transformers` whose attributes describe the layout of their weights (`integrations/moe.py` there),
and takes the choice of the model's own router.
"""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
import torch
from numba import carray
from torch import Tensor, nn

from engine.cpu.captured_ops import captured_call
from engine.cpu.kernels.activation import KINDS, gated_rows
from engine.cpu.kernels.gemm_microkernel import TILE_ROWS
from engine.cpu.packed_gemm import (
    MIN_PRODUCTS_A_THREAD,
    PANEL_WIDTH,
    multiply_tile,
    new_scratch,
    pack_weight,
    tile_rows,
)
from engine.cpu.thread_pool import (
    FLOAT_BYTES,
    compile_parallel,
    longs_at,
    own_share,
    thread_number,
    threads_for,
)

(
    ROWS, DEPTH,
    WEIGHTS, EXPERT_FLOATS,  # (experts, panels, depth, PANEL_WIDTH), and the floats of one
    WIDTH,
    BIASES,  # (experts, width); 0: none
    OUT, SCRATCH,
    NUM_GROUPS, GROUPS,  # (groups, 2) int64: an expert, and the row behind its last
    NUM_ARGUMENTS,
) = range(11)  # fmt: skip


class PackedExperts(nn.Module):
    """Replaces experts for which `can_pack` is true."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        # Its activation, which may be of its own making, without its weights.
        gate = copy.copy(module)
        gate._parameters = {}
        self.gate: Any = gate
        self.first = Products.of(module, "gate_up_proj" if module.has_gate else "up_proj")
        self.second = Products.of(module, "down_proj")
        is_usual = getattr(gate._apply_gate, "__name__", "") == "_default_apply_gate"
        # Of an activation of ours; None: it is the module's own.
        self.kind = KINDS.get(type(gate.act_fn).__name__) if module.has_gate and is_usual else None

    def forward(self, rows: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """rows: (rows, width) float32; experts, weights: (rows, chosen); returns (rows, width)"""
        out = torch.empty_like(rows, memory_format=torch.contiguous_format)
        captured_call(self._compute, rows, experts, weights, out)
        return out

    def _compute(self, rows: Tensor, experts: Tensor, weights: Tensor, out: Tensor) -> None:
        num_chosen = experts.shape[1]
        chosen = experts.flatten().numpy()
        order = np.argsort(chosen, kind="stable")
        hit, firsts = np.unique(chosen[order], return_index=True)
        groups = np.stack([hit, np.append(firsts[1:], len(order))], axis=1)
        groups = groups[hit < len(self.first.packed)]  # what lies behind is no expert
        by_expert = torch.from_numpy(order)
        inner = self._activated(self.first(rows[by_expert // num_chosen], groups))
        found = self.second(inner, groups)
        # In the order of each row's choice, so that the sum is the same in any company.
        by_row = torch.empty_like(found)
        by_row[by_expert] = found
        by_row *= weights.reshape(-1, 1)
        torch.sum(by_row.view(len(rows), num_chosen, -1), dim=1, out=out)

    def _activated(self, rows: Tensor) -> Tensor:
        if self.kind is not None:
            gates, ups = rows.chunk(2, dim=1)
            activated = torch.empty(gates.shape)
            gated_rows(gates, ups, activated, self.kind)
            return activated
        apply = self.gate._apply_gate if self.gate.has_gate else self.gate.act_fn
        inner: Tensor = apply(rows)
        return inner.contiguous()


class Products:
    """The same linear layer of all experts, with packed weights."""

    def __init__(self, weights: Tensor, biases: Tensor | None) -> None:
        """weights: (experts, out, in) float32; biases: (experts, out)"""
        num_experts, self.width, self.depth = weights.shape
        num_panels = -(-self.width // PANEL_WIDTH)
        self.packed = torch.empty(num_experts, num_panels, self.depth, PANEL_WIDTH)
        for packed, weight in zip(self.packed, weights, strict=True):
            packed.copy_(pack_weight(weight))
        self.biases = None if biases is None else biases.clone()
        self.scratch = new_scratch(0)

    @classmethod
    def of(cls, module: Any, name: str) -> Self:
        weights = getattr(module, name).detach()
        biases = getattr(module, f"{name}_bias").detach() if module.has_bias else None
        return cls(weights.transpose(1, 2) if module.is_transposed else weights, biases)

    def arguments(
        self, rows: int, out: int, scratch: int, num_groups: int, groups: int
    ) -> tuple[int, ...]:
        """Return the arguments of `run`. rows, out, scratch, groups: addresses"""
        biases = 0 if self.biases is None else self.biases.data_ptr()
        return (
            rows, self.depth, self.packed.data_ptr(), self.packed[0].numel(), self.width, biases,
            out, scratch, num_groups, groups,
        )  # fmt: skip

    def __call__(self, rows: Tensor, groups: np.ndarray) -> Tensor:
        """Multiply each row by its expert.

        rows:    (rows, in), sorted by expert
        groups:  see GROUPS
        returns: (rows, out)
        """
        rows = rows.contiguous()
        out = torch.empty(len(rows), self.width)
        out[groups[:, 1].max(initial=0) :] = 0
        num_threads = threads_for(rows.numel() * self.width, MIN_PRODUCTS_A_THREAD)
        if len(self.scratch) < num_threads:
            self.scratch = new_scratch(num_threads)
        arguments = self.arguments(
            rows.data_ptr(), out.data_ptr(), self.scratch.ctypes.data, len(groups),
            groups.ctypes.data,
        )  # fmt: skip
        run(num_threads, *arguments)
        return out


def body(arguments: Any) -> None:
    """Compute the calling thread's share of the tiles, expert after expert."""
    a = carray(arguments, (NUM_ARGUMENTS,))
    groups = carray(longs_at(a[GROUPS]), (a[NUM_GROUPS], 2))
    scratch = a[SCRATCH] + np.int64(thread_number()) * TILE_ROWS * PANEL_WIDTH * FLOAT_BYTES
    num_panels = (a[WIDTH] + PANEL_WIDTH - 1) // PANEL_WIDTH
    total, first_row = np.int64(0), np.int64(0)
    for index in range(a[NUM_GROUPS]):
        num_rows = groups[index, 1] - first_row
        total += (num_rows + TILE_ROWS - 1) // TILE_ROWS * num_panels
        first_row = groups[index, 1]
    begin, end = own_share(total)
    passed, first_row = np.int64(0), np.int64(0)
    for index in range(a[NUM_GROUPS]):
        expert, num_rows = groups[index, 0], groups[index, 1] - first_row
        num_tiles = (num_rows + TILE_ROWS - 1) // TILE_ROWS
        biases = a[BIASES]
        if biases != 0:
            biases += expert * a[WIDTH] * FLOAT_BYTES
        for each in range(max(begin - passed, 0), min(end - passed, num_tiles * num_panels)):
            first, behind = tile_rows(each % num_tiles, num_tiles, num_rows)
            row = first_row + first
            multiply_tile(
                behind - first, a[ROWS] + row * a[DEPTH] * FLOAT_BYTES, a[DEPTH],
                a[WEIGHTS] + expert * a[EXPERT_FLOATS] * FLOAT_BYTES, each // num_tiles, a[DEPTH],
                a[WIDTH], biases, 0, a[OUT] + row * a[WIDTH] * FLOAT_BYTES, scratch,
                each % num_tiles, num_tiles,
            )  # fmt: skip
        passed += num_tiles * num_panels
        first_row = groups[index, 1]


run = compile_parallel(body, "10q")


def can_pack(module: Any) -> bool:
    """Return whether a module holds a mixture's experts in a known layout."""
    if not isinstance(getattr(module, "down_proj", None), nn.Parameter):
        return False
    says = [getattr(module, each, None) for each in ("has_gate", "has_bias", "is_transposed")]
    first = getattr(module, "gate_up_proj" if says[0] else "up_proj", None)
    return (
        all(isinstance(each, bool) for each in says)
        and isinstance(first, nn.Parameter)
        and not getattr(module, "has_post_expert_norm", False)
        and all(
            each.dim() == 3 and each.dtype == torch.float32 for each in (first, module.down_proj)
        )
    )


def trial_of(module: Any, num_rows: int) -> tuple[int, tuple[Tensor, Tensor]]:
    """Return the row width of experts, and random choices and weights for `num_rows` rows."""
    num_experts, *sizes = module.down_proj.shape
    width = sizes[1] if module.is_transposed else sizes[0]
    experts = torch.arange(2 * num_rows).view(num_rows, 2) % num_experts
    return width, (experts, torch.linspace(0.1, 0.9, 2 * num_rows).view(num_rows, 2))
