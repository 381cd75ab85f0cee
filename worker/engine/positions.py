"""RowPositions: a decoder's position embedding, looked up for each row at its own position.

BART and its relatives derive the position of all rows from one length of the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RowPositions(nn.Module):
    """Stands in for `embed_positions`; without positions it is what it stands for."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.positions: Tensor | None = None  # (rows,) int64; set for the length of a step
        self.is_sinusoidal_table = hasattr(inner, "weights")  # M2M100 and NLLB

    def forward(self, input_ids: Any, *args: Any, **kwargs: Any) -> Tensor:
        """input_ids: (rows, 1) int64 or their shape; returns (rows, 1, width)."""
        if self.positions is None:
            return self.inner(input_ids, *args, **kwargs)  # type: ignore[no-any-return]  # a module
        if self.is_sinusoidal_table:
            return self._counted(input_ids)
        offset = getattr(self.inner, "offset", 0)
        return nn.functional.embedding(self.positions + offset, self.inner.weight)[:, None]

    def _counted(self, input_ids: Tensor) -> Tensor:
        # In these a pad token has a position of its own, also where a model says one.
        pad = self.inner.padding_idx
        rows = torch.where(input_ids[:, 0] == pad, pad, self.positions + pad + 1)
        return self.inner.weights.index_select(0, rows)[:, None]  # type: ignore[no-any-return]  # a buffer

    @property
    def weight(self) -> Tensor:
        return self.inner.weight  # type: ignore[no-any-return]  # a parameter
