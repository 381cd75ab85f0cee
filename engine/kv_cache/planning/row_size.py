"""RowSize: the memory that one row of a KV cache takes, in places for a token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engine.kv_cache.base import KVShape
from engine.kv_cache.own_cache.joined_layers import SPARE_COLUMNS, LayerContent


@dataclass(frozen=True, slots=True)
class RowSize:
    """A place is what all layers together keep of a token, or, if none keeps any, a whole state."""

    token_bytes: tuple[tuple[int, int | None], ...]  # of layers, and how many tokens they keep
    state_bytes: int  # of the recurrent layers, for a row of any length
    place_bytes: int

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
        return cls(tuple(tokens), states, sum(num_bytes for num_bytes, _ in tokens) or states)

    @classmethod
    def of_groups(cls, shape: KVShape, groups: Iterable[tuple[int, int | None]]) -> RowSize | None:
        """Of groups of layers; None if all keep every token, so that a row takes a place for each.

        groups: of each for how many layers it has room, and how many tokens it keeps
        """
        layer_bytes = shape.bytes_per_token // shape.num_layers
        tokens = tuple((num_layers * layer_bytes, bound) for num_layers, bound in groups)
        if all(bound is None for _, bound in tokens):
            return None
        return cls(tokens, 0, shape.bytes_per_token)

    def num_places(self, num_tokens: int) -> int:
        """The places of a row that comes to have so many tokens, rounded up."""
        kept = sum(
            num_bytes * (num_tokens if bound is None else min(num_tokens, bound))
            for num_bytes, bound in self.token_bytes
        )
        return -(-(kept + self.state_bytes) // self.place_bytes)

    def num_whole_places(self, num_tokens: int) -> int:
        """The places of so many tokens that every layer keeps, as those of an encoder."""
        return -(
            -num_tokens * sum(num_bytes for num_bytes, _ in self.token_bytes) // self.place_bytes
        )
