"""Logit distance: the relative distance of logits, and how much of it rounding explains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# How far logits may be from those alone, relative to how far they spread: sums in another
# order are off by 1e-6 to 1e-5, rows that disturb each other by 1e-2 and more.
MAX_DISTANCE = 1e-4
# Sums in another order, in units of the dtype's precision, grow with the layers they pass.
ROUNDING_UNITS = 8


def distance_of(expected: Tensor, found: Tensor) -> float:
    """The largest relative distance over the steps; infinite if shapes or infinities differ.

    expected, found: (steps, vocab)
    """
    finite = torch.isfinite(expected)
    if expected.shape != found.shape or not torch.equal(finite, torch.isfinite(found)):
        return float("inf")
    distances = []
    for each, other, kept in zip(expected, found, finite, strict=True):
        before, after = each[kept], other[kept]
        spread = (before - before.mean()).norm().clamp_min(1e-6)
        distances.append(float((after - before).norm() / spread))
    return max(distances)


def max_distance(model: Any) -> float:
    """The largest distance that rounding explains; in half precision it grows with the layers."""
    if model.dtype == torch.float32:
        return MAX_DISTANCE
    num_layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 12)
    bound = ROUNDING_UNITS * torch.finfo(model.dtype).eps * float(num_layers) ** 0.5
    return float(min(bound, 0.3))
