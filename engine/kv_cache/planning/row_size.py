"""RowSize: the memory that one row of a KV cache takes, counted in token slots."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engine.kv_cache.base import KVShape
from engine.kv_cache.own_cache.joined_layers import SPARE_COLUMNS, LayerContent


@dataclass(frozen=True, slots=True)
class RowSize:
    """The memory of a row, in slots for one token.

    A slot is what all layers together keep of one token or, if none keeps any, a whole state.
    """

    token_bytes: tuple[tuple[int, int | None], ...]  # of layers, and how many tokens they keep
    state_bytes: int  # of the recurrent layers, for a row of any length
    place_bytes: int

    @classmethod
    def of(cls, contents: list[LayerContent]) -> RowSize:
        """Measure a row. contents: of one row with one token"""
        tokens = []
        for each in contents:
            if each.keys_values is not None:
                num_bytes = sum(tensor.nbytes for tensor in each.keys_values)
                bound = None if each.window is None else each.window + SPARE_COLUMNS
                tokens.append((num_bytes, bound))
        states = sum(state.nbytes for each in contents for state in each.states.values())
        return cls(tuple(tokens), states, sum(num_bytes for num_bytes, _ in tokens) or states)

    @classmethod
    def of_groups(cls, shape: KVShape, groups: Iterable[tuple[int, int | None]]) -> RowSize | None:
        """The row size for groups of layers; None if all keep every token: one slot for each.

        groups: the number of layers and the most tokens kept, for each group
        """
        layer_bytes = shape.bytes_per_token // shape.num_layers
        tokens = tuple((num_layers * layer_bytes, bound) for num_layers, bound in groups)
        if all(bound is None for _, bound in tokens):
            return None
        return cls(tokens, 0, shape.bytes_per_token)

    def num_places(self, num_tokens: int) -> int:
        """The number of slots of a row of `num_tokens`, rounded up."""
        kept = sum(
            num_bytes * (num_tokens if bound is None else min(num_tokens, bound))
            for num_bytes, bound in self.token_bytes
        )
        return -(-(kept + self.state_bytes) // self.place_bytes)

    def num_whole_places(self, num_tokens: int) -> int:
        """The number of slots of `num_tokens` that every layer keeps, as of an encoder."""
        return -(
            -num_tokens * sum(num_bytes for num_bytes, _ in self.token_bytes) // self.place_bytes
        )
