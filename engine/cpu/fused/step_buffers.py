"""StepBuffers: the memory between the calls of a fused step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from engine.cpu import packed_gemm
from engine.cpu.fused.fused_layer import Mixture
from engine.cpu.fused.fused_stack import FusedStack
from engine.kv_cache.layer_group import rounded_up

CAPACITY_MULTIPLE = 64  # of tokens and positions


@dataclass(frozen=True, slots=True)
class Capacity:
    """The largest step that the buffers hold, and the number of threads that they are made for."""

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
            # Doubled, because a prompt that is read in slices needs more positions in each step.
            positions = rounded_up(max(other.positions, 2 * positions), CAPACITY_MULTIPLE)
        return type(self)(
            max(self.tokens, rounded_up(other.tokens, CAPACITY_MULTIPLE)),
            max(self.logits, other.logits),
            positions,
            other.threads,
        )


class Routing:
    """The memory in which the rows of a step are sorted by expert and back."""

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
        """Return the arguments of the functions of `kernels.routing`. residual, out: addresses"""
        places = (
            self.scores, self.experts, self.weights, self.row_of, self.place_of, self.groups,
            self.by_expert,
        )  # fmt: skip
        return (
            0, mixture.num_experts, mixture.num_chosen, int(mixture.is_normalized),
            *(each.data_ptr() for each in places), residual, out, width,
        )  # fmt: skip


class StepBuffers:
    """The memory of a stack's steps, by addresses."""

    def __init__(self, stack: FusedStack, capacity: Capacity) -> None:
        sizes = (
            stack.width, stack.width, stack.width,
            max(each.wide for each in stack.layers), max(each.narrow for each in stack.layers),
        )  # fmt: skip
        self.rows = [torch.empty(capacity.tokens * size) for size in sizes]
        # The hidden states before and after a part of a layer, the normed states, and a token's
        # numbers before and after an activation or attention.
        self.hidden, self.middle, self.normed, self.wide, self.narrow = (
            each.data_ptr() for each in self.rows
        )
        self.of_gemm = packed_gemm.new_scratch(capacity.threads)
        self.scratch = int(self.of_gemm.ctypes.data)
        # By the kind of rotary embedding: cosines and sines of all positions, and of a step's.
        self.rotations: dict[str | None, list[Tensor]] = {
            kind: stack.rotations(kind, capacity.positions) for kind in stack.rotary_kinds
        }
        self.own_rotations: dict[str | None, list[Tensor]] = {
            kind: [torch.empty(capacity.tokens * stack.head_size) for _ in range(2)]
            for kind in stack.rotary_kinds
        }
        mixtures = [each.mixture for each in stack.layers if each.mixture is not None]
        # One for all layers: a layer no longer reads it when the next one begins.
        self.routing = Routing(mixtures, capacity.tokens) if mixtures else None

    def rotation_addresses(self, kind: str | None) -> list[int]:
        """Return the addresses of a step's cosines and sines; zeros without a rotary embedding."""
        return [each.data_ptr() for each in self.own_rotations.get(kind, ())] or [0, 0]
