import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.device_errors import is_out_of_memory
from engine.errors import InvariantBroken
from engine.kv_cache.base import KVShape
from engine.kv_cache.buffer_pool import MAX_POOLED_BUFFERS, BufferPool
from engine.kv_cache.contiguous import ContiguousKVCache, ContiguousSequenceCache
from engine.kv_cache.layer_group import BUCKET_TOKENS
from engine.kv_cache.planning.free_memory import trim_heap

MEGABYTE = 2**20


def rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def shape_of(num_layers: int) -> KVShape:
    return KVShape(num_layers, 8, 128, torch.float32, torch.device("cpu"))


def kv_of(cache: ContiguousSequenceCache) -> torch.Tensor:
    (group,) = cache.groups
    return group.kv


def new_cache(num_layers: int = 8, num_rows: int = 1, **options: Any) -> ContiguousSequenceCache:
    """A cache in which a token of a row takes 8 KiB per layer."""
    return ContiguousSequenceCache(shape_of(num_layers), num_rows, by_ancestors=True, **options)


@pytest.mark.parametrize("num_layers", [2, 64])
def test_keys_are_kept_when_a_cache_grows(num_layers):
    grown = new_cache(num_layers)
    grown.reserve(1)
    written = torch.arange(kv_of(grown)[..., :3, :].numel()).reshape(kv_of(grown)[..., :3, :].shape)
    kv_of(grown)[..., :3, :] = written
    grown.commit_prompt(3)
    grown.reserve(100)
    assert grown.capacity >= 103
    assert torch.equal(kv_of(grown)[..., :3, :], written.float())


def test_a_large_cache_is_returned_to_the_system_whatever_was_allocated_after_it():
    large = new_cache(16, num_rows=4)
    large.reserve(200)
    assert kv_of(large).numel() * 4 >= 64 * MEGABYTE
    kv_of(large).fill_(1.0)
    later = [np.ones(MEGABYTE // 8) for _ in range(8)]  # the top of the heap, above it
    held = rss_bytes()
    large.clear()
    assert rss_bytes() < held - 60 * MEGABYTE
    assert len(later) == 8


def test_a_large_cache_never_moves_and_uses_memory_only_where_it_was_written():
    expecting, modest = new_cache(max_tokens=1000), new_cache(num_layers=1, max_tokens=60)
    expecting.reserve(3)
    assert expecting.capacity == 1024  # of whole buckets
    place = kv_of(expecting).data_ptr()
    expecting.commit_prompt(3)
    expecting.reserve(900)
    assert kv_of(expecting).data_ptr() == place
    held = rss_bytes()
    assert kv_of(expecting).numel() * 4 == 64 * MEGABYTE
    kv_of(expecting).fill_(1.0)
    assert rss_bytes() > held + 60 * MEGABYTE  # pages that were never written are not resident
    modest.reserve(3)
    assert modest.capacity == BUCKET_TOKENS


def test_a_new_cache_reuses_the_smallest_pooled_buffer_that_is_large_enough() -> None:
    buffer_pool = BufferPool(9 * MEGABYTE)
    first, second, third = (new_cache(num_layers=2, buffer_pool=buffer_pool) for _ in range(3))
    for each, num_columns in ((first, 300), (second, 100), (third, 100)):
        each.reserve(num_columns)
    large, small = kv_of(first).data_ptr(), kv_of(second).data_ptr()
    first.clear()
    second.clear()
    again, larger, none_left = (new_cache(num_layers=2, buffer_pool=buffer_pool) for _ in range(3))
    again.reserve(70)  # the smallest block with enough room
    larger.reserve(70)
    none_left.reserve(70)
    assert [kv_of(again).data_ptr(), kv_of(larger).data_ptr()] == [small, large]
    assert kv_of(none_left).data_ptr() not in (small, large)
    assert again.capacity == larger.capacity == 2 * BUCKET_TOKENS
    for each in (third, larger, none_left, again):
        each.clear()
    # The buffers that became free first were released: there is room for one of 5 MiB and two of 2.
    assert [each.nbytes() for each in buffer_pool.buffers] == [
        5 * MEGABYTE,
        2 * MEGABYTE,
        2 * MEGABYTE,
    ]
    buffer_pool.clear()
    assert not buffer_pool.buffers


def test_the_pool_keeps_the_newest_few_buffers() -> None:
    buffer_pool = BufferPool(1024 * MEGABYTE)
    slots = [
        new_cache(num_layers=2, buffer_pool=buffer_pool) for _ in range(MAX_POOLED_BUFFERS + 2)
    ]
    for each in slots:
        each.reserve(10)
    places = [kv_of(each).data_ptr() for each in slots]
    for each in slots:
        each.clear()
    assert [each.data_ptr() for each in buffer_pool.buffers] == places[2:]


def test_a_reused_buffer_holds_nothing_of_the_sequence_before() -> None:
    buffer_pool = BufferPool(MEGABYTE)
    before = new_cache(num_layers=2, buffer_pool=buffer_pool, poisoned=True)
    before.reserve(10)
    kv_of(before).fill_(1.0)
    place = kv_of(before).data_ptr()
    before.clear()
    after = new_cache(num_layers=2, buffer_pool=buffer_pool, poisoned=True)
    after.reserve(10)
    assert kv_of(after).data_ptr() == place
    assert kv_of(after).isnan().all()


def test_two_sequences_with_the_same_memory_are_noticed():
    kv_cache = ContiguousKVCache(shape_of(2))
    caches = [kv_cache.new_sequence(1), kv_cache.new_sequence(1)]
    for each in caches:
        each.reserve(10)
    kv_cache.check(caches)
    caches[0].clear()
    kv_cache.check(caches)
    caches[1].groups[0].kv = kv_of(caches[1]).new_empty(0).set_(kv_cache.buffer_pool.buffers[0])
    with pytest.raises(InvariantBroken, match="2 sequences and pooled buffers have 1 tensors"):
        kv_cache.check(caches)


def test_a_cache_that_cannot_be_allocated_counts_as_out_of_memory():
    endless = new_cache()
    with pytest.raises(MemoryError) as caught:
        endless.reserve(2**40)
    assert is_out_of_memory(caught.value)


def test_trimming_the_heap_returns_freed_memory_to_the_system():
    # Below other blocks of the heap, else they would be returned without trimming.
    freed = [np.ones(4096) for _ in range(2048)]
    kept = [each.copy() for each in freed[::64]]
    held = rss_bytes()
    del freed
    try:
        trim_heap()
        assert rss_bytes() < held - 32 * MEGABYTE
        assert len(kept) == 32
    finally:
        gc.unfreeze()
