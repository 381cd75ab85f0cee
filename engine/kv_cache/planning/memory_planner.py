"""Memory planner: how many tokens' keys and values a device has room for.

On a GPU it starts from the memory that is free once the weights are loaded, so weights need no
estimate. The memory that a step needs besides is estimated on the high side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from engine.checkpoint.loader import Checkpoint
from engine.errors import Unloadable
from engine.kv_cache.base import KVShape
from engine.kv_cache.paged import PAGE_TOKENS, next_power_of_two, num_pages, padded_to_pages
from engine.kv_cache.planning.free_memory import free_bytes
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import Machine

MiB = 2**20
LIBRARY_BYTES = 512 * MiB  # workspaces of cuBLAS, graphs, fragments of the heap
# The most rows times padded tokens whose keys a step gathers in each layer. A long row would
# lengthen all others of its step, so it gets its own step.
MAX_GATHERED_TOKENS = 2**18


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    free_bytes: int
    total_bytes: int

    def max_tokens(self, utilization: float, reserve_bytes: int, bytes_per_token: int) -> int:
        """The number of tokens whose keys and values fit; 0 if none do.

        utilization:     the share of the device's memory that may be used, including used memory
        reserve_bytes:   for a step's temporary tensors
        bytes_per_token: keys and values of one token in all layers
        """
        used_bytes = self.total_bytes - self.free_bytes
        bytes_left = int(self.total_bytes * utilization) - used_bytes - reserve_bytes
        return max(0, bytes_left // bytes_per_token)


@dataclass(frozen=True, slots=True)
class StepMemory:
    """The peak of the temporary memory of a step."""

    num_rows: int
    num_gathered_tokens: int
    num_prefill_tokens: int
    bytes_per_token: int  # keys and values in all layers
    num_layers: int
    hidden_size: int
    vocab_size: int
    item_bytes: int  # of a number of the model

    @property
    def num_bytes(self) -> int:
        gathered = self.num_gathered_tokens * self.bytes_per_token // self.num_layers
        # The model's logits, and float32 copies for logits processors and beam search.
        logits = self.num_rows * self.vocab_size * (2 * self.item_bytes + 4 * 4)
        # Of a layer: its widest states are four times as wide, and there are a few of them.
        states = self.num_prefill_tokens * self.hidden_size * self.item_bytes * 16
        return gathered + logits + states + LIBRARY_BYTES


def machine_for(checkpoint: Checkpoint, shape: KVShape) -> Machine:
    """The limits of this machine for a loaded model."""
    device = checkpoint.model.device
    max_tokens = None
    if device.type == "cuda":
        # Measured once: other processes change it, and what was planned must be what fits.
        memory = DeviceMemory(*torch.cuda.mem_get_info(device))
        max_tokens = partial(max_paged_tokens, checkpoint=checkpoint, shape=shape, memory=memory)
    return Machine(
        device.type,
        free_bytes(device),
        checkpoint.card.max_context_tokens,
        shape.bytes_per_token,
        max_tokens,
    )


def max_paged_tokens(
    spec: EngineSpec, checkpoint: Checkpoint, shape: KVShape, memory: DeviceMemory
) -> int:
    """The largest `max_cache_tokens` that fits. memory: measured after the weights are loaded"""
    assert spec.max_sequences is not None
    assert spec.max_step_tokens is not None
    config = checkpoint.config.get_text_config()
    # T5 has no limit of its own, but no prompt is longer than what a step computes.
    longest = checkpoint.card.max_context_tokens or spec.max_step_tokens
    step = StepMemory(
        num_rows=next_power_of_two(spec.max_sequences),
        num_gathered_tokens=max(MAX_GATHERED_TOKENS, padded_to_pages(longest)),
        num_prefill_tokens=spec.max_step_tokens,
        bytes_per_token=shape.bytes_per_token,
        num_layers=shape.num_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        item_bytes=shape.dtype.itemsize,
    )
    max_tokens = memory.max_tokens(
        spec.gpu_memory_utilization, step.num_bytes, shape.bytes_per_token
    )
    # Partly filled pages take some of it.
    return max(0, max_tokens - num_pages(spec.max_sequences, 0) * PAGE_TOKENS)


def refuse_beyond_memory(spec: EngineSpec, max_tokens: int) -> None:
    """Raise Unloadable if the spec asks for more than `max_tokens`.

    spec: with every limit chosen
    """
    assert spec.max_cache_tokens is not None
    if spec.max_cache_tokens > max_tokens:
        raise Unloadable(
            f"model {spec.alias!r} is to hold {spec.max_cache_tokens} tokens (max_cache_tokens), "
            f"and the GPU has room for {max_tokens} beside the weights (gpu_memory_utilization "
            f"is {spec.gpu_memory_utilization}); lower the one, or raise the other in "
            "tidemill.toml"
        )
