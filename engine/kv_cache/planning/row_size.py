"""RowSize: the memory that one row of a KV cache takes, in places for a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.kv_cache.base import KVShape
from engine.kv_cache.joined_layers import SPARE_COLUMNS, LayerContent


@dataclass(frozen=True, slots=True)
class RowSize:
    """A place is what all layers together keep of a token, or, if none keeps any, a whole state."""

    token_bytes: tuple[tuple[int, int | None], ...]  # of a layer, and how many tokens it keeps
    state_bytes: int  # of the recurrent layers, for a row of any length

    @classmethod
    def of(cls, contents: list[LayerContent]) -> RowSize:
        """contents: of one row with one token"""
        tokens = []
        for each in contents:
            if each.keys_values is not None:
                num_bytes = sum(tensor.nbytes for tensor in each.keys_values)
                bound = None if each.window is None else each.window + SPARE_COLUMNS
                tokens.append((num_bytes, bound))
        states = sum(state.nbytes for each in contents for state in each.states.values())
        return cls(tuple(tokens), states)

    @classmethod
    def of_windows(
        cls,
        shape: KVShape,
        windows: tuple[int | None, ...],
        max_columns: Callable[[int], int],
    ) -> RowSize | None:
        """None if no layer has a window: a row takes a place for each token.

        max_columns: of a window: how many tokens a layer with such a one keeps
        """
        num_bytes = shape.bytes_per_token // shape.num_layers
        bounds = [None if each is None else max_columns(each) for each in windows]
        return cls(tuple((num_bytes, each) for each in bounds), 0) if any(bounds) else None

    @property
    def place_bytes(self) -> int:
        return sum(num_bytes for num_bytes, _ in self.token_bytes) or self.state_bytes

    def num_places(self, num_tokens: int) -> int:
        """The places of a row that comes to have so many tokens, rounded up."""
        kept = sum(
            num_bytes * (num_tokens if bound is None else min(num_tokens, bound))
            for num_bytes, bound in self.token_bytes
        )
        return -(-(kept + self.state_bytes) // self.place_bytes)
