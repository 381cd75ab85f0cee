"""PerTokenPositionEmbedding: a position embedding that takes a position for each token.

BART and its relatives compute the positions of all rows from a single cache length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class PerTokenPositionEmbedding(nn.Module):
    """Replaces a stack's `embed_positions`. Outside of `at` it behaves like the original."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.positions: Tensor | None = None  # (rows, tokens) int64, within `at`
        self.is_sinusoidal_table = hasattr(inner, "weights")  # M2M100 and NLLB

    @contextmanager
    def at(self, positions: Tensor) -> Iterator[None]:
        """Use these positions within the context. positions: (rows, tokens) int64"""
        self.positions = positions
        try:
            yield
        finally:
            self.positions = None

    def of_prompt(self, ids: tuple[int, ...]) -> list[int]:
        """The position of each token of a prompt."""
        if not self.is_sinusoidal_table:
            return list(range(len(ids)))
        # These models do not count pad tokens, even within a prompt.
        positions, position = [], -1
        for id_ in ids:
            position += id_ != self.inner.padding_idx
            positions.append(position)
        return positions

    def forward(self, input_ids: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Look up positions.

        input_ids: (rows, tokens) int64 or a shape; returns (rows, tokens, width)
        """
        if self.positions is None:
            return self.inner(input_ids, *args, **kwargs)  # type: ignore[no-any-return]  # a module
        if self.is_sinusoidal_table:
            return self._look_up_sinusoids(input_ids)
        if not hasattr(self.inner, "weight"):  # PEGASUS-X computes them, of one length a call
            rows = zip(input_ids.split(1), self.positions[:, 0].tolist(), strict=True)
            return torch.cat([self.inner(row, length) for row, length in rows])
        if hasattr(self.inner, "make_positions"):  # FSMT
            return self._look_up_counted(input_ids)
        offset = getattr(self.inner, "offset", 0)
        return nn.functional.embedding(self.positions + offset, self.inner.weight)

    def _look_up_sinusoids(self, input_ids: Tensor) -> Tensor:
        # These models give pad tokens a special position, even generated ones.
        assert self.positions is not None
        pad = self.inner.padding_idx
        rows = (self.positions + pad + 1).masked_fill(input_ids == pad, pad)
        return nn.functional.embedding(rows, self.inner.weights)

    def _look_up_counted(self, input_ids: Tensor) -> Tensor:
        # A generated pad token is not counted, and the table grows with the text.
        assert self.positions is not None
        inner = self.inner
        rows = self.positions + inner.padding_idx + (input_ids != inner.padding_idx)
        if (longest := int(rows.max()) + 1) > len(inner.weight):
            inner.make_weight(longest, inner.embedding_dim, inner.padding_idx)
        return nn.functional.embedding(rows, inner.weight)

    @property
    def weight(self) -> Tensor:
        return self.inner.weight  # type: ignore[no-any-return]  # a parameter


def install_position_embedding(stack: Any) -> PerTokenPositionEmbedding | None:
    """Replace a stack's position embedding. Returns the new one; None if the stack has none."""
    if not hasattr(stack, "embed_positions"):
        return None
    if isinstance(stack.embed_positions, PerTokenPositionEmbedding):
        return stack.embed_positions
    embedding = PerTokenPositionEmbedding(stack.embed_positions)
    stack.embed_positions = embedding
    return embedding
