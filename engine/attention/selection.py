"""Chooses the KV cache and the attention backends of a model when it is loaded."""

from __future__ import annotations

from engine.attention.base import AttentionBackend
from engine.attention.paged_backend import PagedAttentionBackend
from engine.attention.torch_backend import TorchAttentionBackend
from engine.cpu.attention_backend import CpuAttentionBackend, decode_kernel_for
from engine.cpu.self_test import kernel_module, kernels_enabled
from engine.device_errors import is_out_of_memory
from engine.errors import Unloadable
from engine.kv_cache.base import KVCacheManager, KVShape, WindowedKVCache
from engine.kv_cache.contiguous import ContiguousKVCache
from engine.kv_cache.paged import PagedKVCache
from engine.kv_cache.prefix_cache import CACHE_SHARE
from engine.protocol.engine_spec import EngineSpec


def kv_cache_for(
    spec: EngineSpec,
    shape: KVShape,
    poisoned: bool = False,
    is_paged: bool | None = None,
    windows: tuple[int | None, ...] = (),
) -> WindowedKVCache:
    """Return the KV cache of a model. Raises Unloadable.

    spec:     with every limit chosen
    poisoned: fill unwritten memory with NaN; for tests
    is_paged: None: paged on a GPU only
    windows:  of each layer, by which pages are laid out; (): no layer has one
    """
    if is_paged is None:
        is_paged = shape.device.type == "cuda"
    assert spec.max_sequences is not None
    assert spec.max_cache_tokens is not None
    max_prefix_tokens = int(CACHE_SHARE * spec.max_cache_tokens) if spec.prefix_caching else 0
    if not is_paged:
        kernels = kernels_enabled(spec.cpu_kernels)
        return contiguous_kv_cache(
            shape, poisoned, kernels, spec.max_cache_tokens, max_prefix_tokens
        )
    try:
        return PagedKVCache(
            shape, spec.max_sequences, spec.max_cache_tokens, poisoned, max_prefix_tokens, windows
        )
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # Another process may have taken it since it was measured.
        raise Unloadable(
            f"there is no room for the {spec.max_cache_tokens} tokens that model "
            f"{spec.alias!r} is to hold, at {shape.bytes_per_token} bytes each; "
            "lower its gpu_memory_utilization or max_cache_tokens in tidemill.toml"
        ) from error


def contiguous_kv_cache(
    shape: KVShape,
    poisoned: bool = False,
    cpu_kernels: bool = True,
    max_tokens: int = 0,
    max_prefix_tokens: int = 0,
) -> ContiguousKVCache:
    """Return a contiguous cache laid out for the fastest attention available on this machine.

    poisoned:    see ContiguousSequenceCache
    cpu_kernels: whether compiled attention may be used; its self-test must pass first
    max_tokens, max_prefix_tokens: see ContiguousKVCache
    """
    by_ancestors = cpu_kernels and decode_kernel_for(shape) is not None
    return ContiguousKVCache(shape, by_ancestors, poisoned, max_tokens, max_prefix_tokens)


def attention_for(kv_cache: KVCacheManager, is_cross: bool = False) -> AttentionBackend:
    """Return the attention backend for a KV cache.

    is_cross: whether rows attend to the encoder's output
    """
    if isinstance(kv_cache, PagedKVCache):
        return PagedAttentionBackend(kv_cache, is_cross)
    assert isinstance(kv_cache, ContiguousKVCache)
    if not kv_cache.by_ancestors:
        return TorchAttentionBackend(kv_cache, is_cross)
    # Only the compiled kernel follows the ancestors of beams, and the cache was made for it.
    return CpuAttentionBackend(kernel_module("kernels.decode_attention"), kv_cache, is_cross)
