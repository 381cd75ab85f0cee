"""MergedLinear: products of the same rows with several matrices, computed as one.

A model's own code asks for queries, keys and values one by one. One large product reads its
weights faster than three small ones, and wakes the threads once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Children of one module that it calls with the same rows, in this order.
GROUPS = (
    ("q_proj", "k_proj", "v_proj"),
    ("q", "k", "v"),
    ("gate_proj", "up_proj"),
    ("wi_0", "wi_1"),
)
# In these the queries are of others than the keys.
CROSSING = ("encoder_attn", "EncDecAttention", "cross_attn", "crossattention")


class MergedLinear:
    """Holds a product until each part of it was fetched."""

    def __init__(self, linear: nn.Module, num_parts: int) -> None:
        self.linear = linear
        self.num_parts = num_parts
        self.rows: Tensor | None = None
        self.product: Tensor | None = None
        self.num_left = 0

    def fetch(self, rows: Tensor) -> Tensor:
        if self.rows is not rows or self.product is None:
            self.rows, self.product, self.num_left = rows, self.linear(rows), self.num_parts
        product = self.product
        self.num_left -= 1
        if self.num_left == 0:
            self.rows = self.product = None
        return product


class Part(nn.Module):
    """Stands in for one of the linear modules."""

    def __init__(self, together: MergedLinear, first: int, weight: Tensor) -> None:
        """first: of its outputs, among those of all; weight: (out, in), which it does not keep"""
        super().__init__()
        self.together = together
        self.out_features, self.in_features = weight.shape
        self.first = first
        self.weight = weight.new_empty(0)  # some models look at the type of their weights

    def forward(self, x: Tensor) -> Tensor:
        return self.together.fetch(x).narrow(-1, self.first, self.out_features)


def groups_of(module: nn.Module, name: str) -> Iterator[tuple[str, ...]]:
    """Names of those children that can be computed together. name: of the module"""
    for group in GROUPS:
        names = group[1:] if name.endswith(CROSSING) else group
        children = [getattr(module, each, None) for each in names]
        linears = [each for each in children if type(each) is nn.Linear]
        # In a cross-attention by another name they may not even be of the same width.
        if len(linears) == len(names) > 1 and len({each.in_features for each in linears}) == 1:
            yield names


def joined(linears: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias of all."""
    weight = torch.cat([each.weight.detach() for each in linears])
    if all(each.bias is None for each in linears):
        return weight, None
    biases = [
        each.weight.new_zeros(each.out_features) if each.bias is None else each.bias.detach()
        for each in linears
    ]
    return weight, torch.cat(biases)
