"""RowMasks: passes the padding mask to decoder layers whose stack drops it.

LED, FSMT and ProphetNet assume rows of equal length in a step of one token, and pass no mask to
their layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# The names of a layer's mask argument: True for padding (FSMT), or added to scores.
OF_PADDING = "decoder_padding_mask"
ADDED = "attention_mask"


class RowMasks:
    """Passes a padding mask to layers.

    Always: a mask that a layer gets from its stack is unchanged.
    """

    def __init__(self, decoder: Any) -> None:
        self.mask: Tensor | None = None  # (rows, columns) int64, 1 where a row has a token
        for layer in getattr(decoder, "layers", ()):
            names = list(inspect.signature(layer.forward).parameters)
            name = OF_PADDING if OF_PADDING in names else ADDED
            if name in names:
                layer.register_forward_pre_hook(
                    self._hook_for(name, names.index(name)), with_kwargs=True
                )

    @contextmanager
    def at(self, mask: Tensor, is_padded: bool) -> Iterator[None]:
        """Use this mask within the context, if any row is padded."""
        self.mask = mask if is_padded else None
        try:
            yield
        finally:
            self.mask = None

    def _hook_for(self, name: str, at: int) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if self.mask is None or (args[at] if at < len(args) else named.get(name)) is not None:
                return None
            mask = self.mask == 0
            if name == ADDED:
                mask = added_to_scores(mask, args[0] if args else named["hidden_states"])
            if at < len(args):
                return (*args[:at], mask, *args[at + 1 :]), named
            return args, {**named, name: mask}

        return hook


def added_to_scores(is_padding: Tensor, states: Tensor) -> Tensor:
    """Return an additive mask, (rows, 1, 1, columns), of the dtype of `states`.

    is_padding: (rows, columns) bool
    """
    scores = torch.zeros(is_padding.shape, dtype=states.dtype, device=states.device)
    return scores.masked_fill(is_padding, torch.finfo(states.dtype).min)[:, None, None]
