"""KVCacheManager: where a runner has the keys and values of its sequences.

In slots of their own, each read by itself, or in a page pool, all read at once. The first is
for a CPU, which computes nothing that it need not; the second for a GPU, which had rather
compute too much than wait to be told. Both give the same tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.attention.base import (
    AttentionBackend,
    ContiguousAttentionBackend,
    TorchAttentionBackend,
)
from engine.attention.paged_backend import PagedAttentionBackend
from engine.backends.loader import Checkpoint
from engine.cpu.attention_backend import CpuAttentionBackend
from engine.cpu.optional import compiled
from engine.device_errors import is_out_of_memory
from engine.errors import Unloadable
from engine.kv_cache.contiguous import KVShape, SequenceCache
from engine.kv_cache.free_memory import free_bytes
from engine.kv_cache.memory_planner import DeviceMemory, StepMemory
from engine.kv_cache.paged import PAGE_TOKENS, PagedSequenceCache, PagePool, num_pages
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import Machine
from engine.runners.captured_step import CapturedStep
from engine.runners.cuda_graphs import GraphCache, recorder_for
from engine.runners.static_step import (
    MAX_PLACES,
    StaticStep,
    StepInputs,
    StepShape,
    in_pages,
    power_of_two,
)

log = logging.getLogger(__name__)


class KVCacheManager(Protocol):
    shape: KVShape

    @property
    def attention(self) -> AttentionBackend:
        """To a row's own tokens."""

    @property
    def cross(self) -> AttentionBackend:
        """To what the encoder left."""

    def new_slot(self, num_rows: int, num_expected: int) -> SequenceCache:
        """num_expected: columns that it may come to have"""

    def static_step(self, forward: Callable[[StepInputs], Tensor]) -> StaticStep | None:
        """What runs the steps; None if slots have memory of their own."""

    def captured_step(self, forward: Callable[[Tensor, Tensor], Tensor]) -> CapturedStep | None:
        """What runs them then."""

    def hold_inputs(self, inputs: StepInputs) -> None:
        """Of the next step, if that is a static one."""

    def free_all_but(self, slots: Iterable[SequenceCache]) -> None:
        """Whatever else was made is given back: the rest of a step that failed."""

    def check(self, slots: Iterable[SequenceCache]) -> None:
        """Raise InvariantBroken if others hold something."""


class ContiguousKVCache:
    def __init__(self, shape: KVShape, poisoned: bool = False) -> None:
        """poisoned: memory that must not be read is NaN; for tests"""
        self.shape = shape
        self.attention = attention_backend_for(shape, is_cross=False, poisoned=poisoned)
        self.cross = attention_backend_for(shape, is_cross=True, poisoned=poisoned)

    def new_slot(self, num_rows: int, num_expected: int) -> SequenceCache:
        return self.attention.new_slot(num_rows, num_expected)

    def static_step(self, forward: Callable[[StepInputs], Tensor]) -> None:
        return None

    def captured_step(self, forward: Callable[[Tensor, Tensor], Tensor]) -> CapturedStep:
        return CapturedStep(forward, self.shape.device, self.attention.is_repeatable)

    def hold_inputs(self, inputs: StepInputs) -> None:
        raise AssertionError("slots of their own are told by themselves")

    def free_all_but(self, slots: Iterable[SequenceCache]) -> None:
        """Memory of one's own goes with its slot; here goes what was left to the next."""
        self.attention.buffer_pool.clear()
        self.cross.buffer_pool.clear()

    def check(self, slots: Iterable[SequenceCache]) -> None:
        """Nothing is shared."""


def attention_backend_for(
    shape: KVShape, is_cross: bool, poisoned: bool
) -> ContiguousAttentionBackend:
    """The quickest there is for such keys in slots of their own.

    is_cross: rows attend to the prompt's
    poisoned: memory that must not be read is NaN; for tests
    """
    if shape.device.type == "cpu" and shape.dtype == torch.float32:
        kernel = compiled("kernels.decode_attention")
        if kernel is not None:
            return CpuAttentionBackend(kernel, shape, is_cross, poisoned)
        log.warning("nothing is compiled here, attention is slow")
    return TorchAttentionBackend(shape, is_cross, poisoned)


class PagedKVCache:
    def __init__(
        self, shape: KVShape, max_rows: int, max_tokens: int, poisoned: bool = False
    ) -> None:
        """poisoned: as above"""
        self.shape = shape
        self.page_pool = PagePool(shape, max_rows, max_tokens, poisoned)
        self.attention = PagedAttentionBackend(self.page_pool, is_cross=False)
        self.cross = PagedAttentionBackend(self.page_pool, is_cross=True)

    def new_slot(self, num_rows: int, num_expected: int) -> PagedSequenceCache:
        return self.page_pool.slot(num_rows)

    def static_step(self, forward: Callable[[StepInputs], Tensor]) -> StaticStep:
        graphs: GraphCache[StepShape, None] = GraphCache(recorder_for(self.shape.device))
        return StaticStep(self.page_pool, forward, graphs)

    def captured_step(self, forward: Callable[[Tensor, Tensor], Tensor]) -> None:
        return None

    def hold_inputs(self, inputs: StepInputs) -> None:
        self.attention.hold_inputs(inputs)
        if inputs.has_encoder:
            self.cross.hold_inputs(inputs)

    def free_all_but(self, slots: Iterable[Any]) -> None:
        self.page_pool.free_all_but(slots)

    def check(self, slots: Iterable[Any]) -> None:
        self.page_pool.check(slots)


def kv_cache_for(
    spec: EngineSpec,
    checkpoint: Checkpoint,
    shape: KVShape,
    poisoned: bool = False,
    is_paged: bool | None = None,
) -> KVCacheManager:
    """spec: nothing is left open; is_paged: None: on a GPU. Raises Unloadable."""
    if is_paged is None:
        is_paged = shape.device.type == "cuda"
    if not is_paged:
        return ContiguousKVCache(shape, poisoned)
    assert spec.max_sequences is not None
    assert spec.max_cache_tokens is not None
    try:
        return PagedKVCache(shape, spec.max_sequences, spec.max_cache_tokens, poisoned)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # Others may have taken it since it was looked at.
        raise Unloadable(
            f"there is no room for the {spec.max_cache_tokens} tokens that model "
            f"{spec.alias!r} is to hold, at {shape.bytes_per_token} bytes each; "
            "lower its gpu_memory_utilization or max_cache_tokens in tidemill.toml"
        ) from error


def machine_for(checkpoint: Checkpoint, shape: KVShape) -> Machine:
    """What there is for a loaded model that keeps so much of a token."""
    device = checkpoint.model.device
    room = None
    if device.type == "cuda":
        # Looked at once: it changes by what others do, and what was chosen must be what fits.
        memory = DeviceMemory(*torch.cuda.mem_get_info(device))
        room = partial(max_paged_tokens, checkpoint=checkpoint, shape=shape, memory=memory)
    return Machine(
        device.type,
        free_bytes(device),
        checkpoint.card.max_context_tokens,
        shape.bytes_per_token,
        room,
    )


def max_paged_tokens(
    spec: EngineSpec, checkpoint: Checkpoint, shape: KVShape, memory: DeviceMemory
) -> int:
    """How large `max_cache_tokens` may be. memory: with the weights loaded"""
    assert spec.max_sequences is not None
    assert spec.max_step_tokens is not None
    config = checkpoint.config.get_text_config()
    # T5 has no limit of its own, but no prompt is longer than what a step reads.
    longest = checkpoint.card.max_context_tokens or spec.max_step_tokens
    step = StepMemory(
        num_rows=power_of_two(spec.max_sequences),
        num_places=max(MAX_PLACES, in_pages(longest)),
        num_read_tokens=spec.max_step_tokens,
        bytes_per_token=shape.bytes_per_token,
        num_layers=shape.num_layers,
        width=config.hidden_size,
        vocab_size=config.vocab_size,
        item_bytes=shape.dtype.itemsize,
    )
    room = memory.room(spec.gpu_memory_utilization, step.num_bytes, shape.bytes_per_token)
    # Some of it goes to pages that are begun and not filled.
    return max(0, room - num_pages(spec.max_sequences, 0) * PAGE_TOKENS)


def refuse_beyond_memory(spec: EngineSpec, room: int) -> None:
    """Raises Unloadable. spec: nothing is left open"""
    assert spec.max_cache_tokens is not None
    if spec.max_cache_tokens > room:
        raise Unloadable(
            f"model {spec.alias!r} is to hold {spec.max_cache_tokens} tokens (max_cache_tokens), "
            f"and the GPU has room for {room} beside the weights (gpu_memory_utilization is "
            f"{spec.gpu_memory_utilization}); lower the one, or raise the other in tidemill.toml"
        )
