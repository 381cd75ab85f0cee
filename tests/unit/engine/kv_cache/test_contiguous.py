import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.device_errors import is_out_of_memory
from engine.kv_cache.contiguous import (
    BUCKET_TOKENS,
    MAX_LEFT,
    BufferPool,
    ContiguousSequenceCache,
    KVShape,
)
from engine.kv_cache.free_memory import trim_heap

MEGABYTE = 2**20


def rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def slot(num_layers: int = 8, num_rows: int = 1, **told: Any) -> ContiguousSequenceCache:
    """A column of each row is 8 KiB a layer."""
    shape = KVShape(num_layers, 8, 128, torch.float32, torch.device("cpu"))
    return ContiguousSequenceCache(shape, num_rows, by_ancestors=True, **told)


@pytest.mark.parametrize("num_layers", [2, 64])
def test_what_is_kept_stays_when_a_slot_grows(num_layers):
    grown = slot(num_layers)
    grown.make_room(1)
    written = torch.arange(grown.kept[..., :3, :].numel()).reshape(grown.kept[..., :3, :].shape)
    grown.kept[..., :3, :] = written
    grown.filled(3)
    grown.make_room(100)
    assert grown.capacity >= 103
    assert torch.equal(grown.kept[..., :3, :], written.float())


def test_a_large_slot_goes_back_to_the_system_whatever_was_made_after_it():
    large = slot(16, num_rows=4)
    large.make_room(200)
    assert large.kept.numel() * 4 >= 64 * MEGABYTE
    large.kept.fill_(1.0)
    later = [np.ones(MEGABYTE // 8) for _ in range(8)]  # the top of the heap, above it
    held = rss_bytes()
    large.clear()
    assert rss_bytes() < held - 60 * MEGABYTE
    assert len(later) == 8


def test_a_large_slot_has_room_for_what_is_expected_from_the_start():
    expecting, modest = slot(num_expected=1000), slot(num_layers=1, num_expected=60)
    expecting.make_room(3)
    assert expecting.capacity == 1024  # of whole buckets
    place = expecting.kept.data_ptr()
    expecting.filled(3)
    expecting.make_room(900)
    assert expecting.kept.data_ptr() == place
    held = rss_bytes()
    assert expecting.kept.numel() * 4 == 64 * MEGABYTE
    expecting.kept.fill_(1.0)
    assert rss_bytes() > held + 60 * MEGABYTE  # what nobody wrote to is not there
    modest.make_room(3)
    assert modest.capacity == BUCKET_TOKENS


def test_a_slot_has_the_memory_of_one_that_ended() -> None:
    buffer_pool = BufferPool(9 * MEGABYTE)
    first, second, third = (slot(num_layers=2, buffer_pool=buffer_pool) for _ in range(3))
    for each, num_columns in ((first, 300), (second, 100), (third, 100)):
        each.make_room(num_columns)
    large, small = first.kept.data_ptr(), second.kept.data_ptr()
    first.clear()
    second.clear()
    again, larger, none_left = (slot(num_layers=2, buffer_pool=buffer_pool) for _ in range(3))
    again.make_room(70)  # the smallest in which it has room
    larger.make_room(70)
    none_left.make_room(70)
    assert [again.kept.data_ptr(), larger.kept.data_ptr()] == [small, large]
    assert none_left.kept.data_ptr() not in (small, large)
    assert again.capacity == larger.capacity == 2 * BUCKET_TOKENS
    for each in (third, larger, none_left, again):
        each.clear()
    # The first that were left went back: there is room for one of 5 MiB and two of 2.
    assert [each.nbytes() for each in buffer_pool.left] == [
        5 * MEGABYTE,
        2 * MEGABYTE,
        2 * MEGABYTE,
    ]
    buffer_pool.clear()
    assert not buffer_pool.left


def test_no_more_than_a_few_slots_leave_their_memory() -> None:
    buffer_pool = BufferPool(1024 * MEGABYTE)
    slots = [slot(num_layers=2, buffer_pool=buffer_pool) for _ in range(MAX_LEFT + 2)]
    for each in slots:
        each.make_room(10)
    places = [each.kept.data_ptr() for each in slots]
    for each in slots:
        each.clear()
    assert [each.data_ptr() for each in buffer_pool.left] == places[2:]


def test_what_a_slot_left_is_poisoned_for_the_next() -> None:
    buffer_pool = BufferPool(MEGABYTE)
    before = slot(num_layers=2, buffer_pool=buffer_pool, poisoned=True)
    before.make_room(10)
    before.kept.fill_(1.0)
    place = before.kept.data_ptr()
    before.clear()
    after = slot(num_layers=2, buffer_pool=buffer_pool, poisoned=True)
    after.make_room(10)
    assert after.kept.data_ptr() == place
    assert after.kept.isnan().all()


def test_a_slot_for_which_there_is_no_memory_says_so():
    endless = slot()
    with pytest.raises(MemoryError) as caught:
        endless.make_room(2**40)
    assert is_out_of_memory(caught.value)


def test_what_was_freed_goes_back_to_the_system():
    # Below what lies above them in the heap, or they would go back by themselves.
    freed = [np.ones(4096) for _ in range(2048)]
    kept = [each.copy() for each in freed[::64]]
    held = rss_bytes()
    del freed
    try:
        trim_heap()
        assert rss_bytes() < held - 32 * MEGABYTE
        assert len(kept) == 32
        # What stays is gone through no more.
        assert gc.get_freeze_count() > len(gc.get_objects())
    finally:
        gc.unfreeze()
