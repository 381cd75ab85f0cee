"""PerTokenPositionEmbedding: a position embedding, looked up for each token at its own position.

BART and its relatives derive the positions of all rows from one length of the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class PerTokenPositionEmbedding(nn.Module):
    """Replaces a stack's `embed_positions`; outside of `at` it does what that did."""

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
        # These do not count a pad token, not even one that is part of the prompt.
        positions, position = [], -1
        for id_ in ids:
            position += id_ != self.inner.padding_idx
            positions.append(position)
        return positions

    def forward(self, input_ids: Any, *args: Any, **kwargs: Any) -> Tensor:
        """input_ids: (rows, tokens) int64 or their shape; returns (rows, tokens, width)."""
        if self.positions is None:
            return self.inner(input_ids, *args, **kwargs)  # type: ignore[no-any-return]  # a module
        if self.is_sinusoidal_table:
            return self._look_up_sinusoids(input_ids)
        offset = getattr(self.inner, "offset", 0)
        return nn.functional.embedding(self.positions + offset, self.inner.weight)

    def _look_up_sinusoids(self, input_ids: Tensor) -> Tensor:
        # These give a pad token a position of its own, even one that the model chose.
        assert self.positions is not None
        pad = self.inner.padding_idx
        rows = (self.positions + pad + 1).masked_fill(input_ids == pad, pad)
        return nn.functional.embedding(rows, self.inner.weights)

    @property
    def weight(self) -> Tensor:
        return self.inner.weight  # type: ignore[no-any-return]  # a parameter
