"""MergedLinear: one product in place of several that read the same rows.

A model's own code calls the projections to queries, keys and values one by one. One large product
reads its weights faster than three small ones, and wakes the threads once.
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
# Modules whose queries are made of other rows than their keys and values.
CROSS_ATTENTION = ("encoder_attn", "EncDecAttention", "cross_attn", "crossattention")


class MergedLinear:
    """Computes the product when the first slice is called, and keeps it until the last one is."""

    def __init__(self, linear: nn.Module, num_slices: int) -> None:
        self.linear = linear
        self.num_slices = num_slices
        self.rows: Tensor | None = None
        self.product: Tensor | None = None
        self.num_left = 0

    def product_of(self, rows: Tensor) -> Tensor:
        """Return the product of all slices. rows: (..., in); returns (..., sum of all out)"""
        if self.rows is not rows or self.product is None:
            self.rows, self.product, self.num_left = rows, self.linear(rows), self.num_slices
        product = self.product
        self.num_left -= 1
        if self.num_left == 0:
            self.rows = self.product = None
        return product


class LinearSlice(nn.Module):
    """Replaces one linear module by its part of the merged product."""

    def __init__(self, merged: MergedLinear, first_output: int, weight: Tensor) -> None:
        """weight: (out, in) of the replaced module, read for its size and dtype only"""
        super().__init__()
        self.merged = merged
        self.out_features, self.in_features = weight.shape
        self.first_output = first_output
        self.weight = weight.new_empty(0)  # some models look at the type of their weights

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in); returns (..., out), a view of the merged product"""
        return self.merged.product_of(x).narrow(-1, self.first_output, self.out_features)


def mergeable_children(module: nn.Module, path: str) -> Iterator[tuple[str, ...]]:
    """Yield the names of children that can be merged. path: the module's name in its model"""
    for group in GROUPS:
        names = group[1:] if path.endswith(CROSS_ATTENTION) else group
        children = [getattr(module, each, None) for each in names]
        linears = [each for each in children if type(each) is nn.Linear]
        # In a cross-attention by another name they may not even be of the same width.
        if len(linears) == len(names) > 1 and len({each.in_features for each in linears}) == 1:
            yield names


def concatenate(linears: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Return the weight (sum of all out, in) and the bias (sum of all out,) of a merged module."""
    weight = torch.cat([each.weight.detach() for each in linears])
    if all(each.bias is None for each in linears):
        return weight, None
    biases = [
        each.weight.new_zeros(each.out_features) if each.bias is None else each.bias.detach()
        for each in linears
    ]
    return weight, torch.cat(biases)
