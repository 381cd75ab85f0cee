"""DeviceMemory: how many tokens of keys and values a GPU has room for.

Planned from what is free when the weights are in, for they are counted then and need no
guess. A guess is what a step needs beside them; it is made high.
"""

from __future__ import annotations

from dataclasses import dataclass

MiB = 2**20
LIBRARY_BYTES = 512 * MiB  # workspaces of cuBLAS, graphs, the heap's odds and ends


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    free_bytes: int
    total_bytes: int

    def room(self, utilization: float, reserve_bytes: int, bytes_per_token: int) -> int:
        """Tokens that may be kept; none if there is no room.

        utilization:     the share of the device that we may use, with what is used already
        reserve_bytes:   needed for a step, not kept
        bytes_per_token: keys and values of one token in all layers
        """
        used_bytes = self.total_bytes - self.free_bytes
        bytes_left = int(self.total_bytes * utilization) - used_bytes - reserve_bytes
        return max(0, bytes_left // bytes_per_token)


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What a step needs for a moment, at most."""

    num_rows: int
    num_places: int  # rows times tokens that they look back on
    num_read_tokens: int  # of prompts, read at once
    bytes_per_token: int  # keys and values in all layers
    num_layers: int
    width: int  # of a token between two layers
    vocab_size: int
    item_bytes: int  # of a number of the model

    @property
    def num_bytes(self) -> int:
        # A layer's keys and values of all rows, as they are gathered from the page_pool.
        gathered = self.num_places * self.bytes_per_token // self.num_layers
        # Those of the model, and in float32 what processors and searches make of them.
        logits = self.num_rows * self.vocab_size * (2 * self.item_bytes + 4 * 4)
        # Between two layers: the widest is four times as wide and there are a few of them.
        between = self.num_read_tokens * self.width * self.item_bytes * 16
        return gathered + logits + between + LIBRARY_BYTES
