"""After any allocation, release and reordering, a row of a paged cache reads its own tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvariantBroken
from engine.kv_cache.base import KVShape
from engine.kv_cache.paged import BLANK, PAGE_TOKENS, SCRATCH, PagedKVCache

ONE = KVShape(num_layers=1, num_heads=1, head_size=1, dtype=torch.int64, device=torch.device("cpu"))
MAX_ROWS, MAX_TOKENS = 6, 600


class Rows:
    """A sequence in the cache, and the expected tokens of its rows."""

    def __init__(self, kv_cache: PagedKVCache, num_rows: int, prompt: list[int]) -> None:
        self.cache = kv_cache.new_sequence(num_rows)
        self.kv_cache = kv_cache
        (slots,) = self.cache.reserve_prompt(len(prompt))
        kv_cache.kv[0, slots, 0, 0, 0] = torch.tensor(prompt)
        self.cache.commit_prompt(len(prompt))
        self.expected = [list(prompt) for _ in range(num_rows)]

    def append(self, tokens: list[int]) -> None:
        self.cache.reserve()
        for row, expected, token in zip(self.cache.rows, self.expected, tokens, strict=True):
            slot = self.kv_cache.slot_table.slots[0, row, self.cache.length]
            self.kv_cache.kv[0, slot, 0, 0, 0] = token
            expected.append(token)
        self.cache.commit_token()

    def reorder(self, rows: list[int]) -> None:
        self.cache.reorder(torch.tensor(rows))
        self.expected = [list(self.expected[row]) for row in rows]

    @property
    def found(self) -> list[list[int]]:
        slots = self.kv_cache.slot_table.slots[0, self.cache.rows, : self.cache.length]
        return self.kv_cache.kv[0, slots, 0, 0, 0].tolist()


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_row_reads_what_was_written_to_it(data):
    kv_cache = PagedKVCache(ONE, MAX_ROWS, MAX_TOKENS)
    running: list[Rows] = []
    next_token = 0
    for _ in range(data.draw(st.integers(1, 12))):
        free_rows = MAX_ROWS - sum(each.cache.num_rows for each in running)
        if free_rows and data.draw(st.booleans()):
            num_rows = data.draw(st.integers(1, min(3, free_rows)))
            length = data.draw(st.sampled_from([1, 63, 64, 65, 100]))
            running.append(Rows(kv_cache, num_rows, list(range(next_token, next_token + length))))
            next_token += length
        elif running:
            rows = data.draw(st.sampled_from(running))
            if data.draw(st.integers(0, 3)) == 0:
                rows.cache.clear()
                running.remove(rows)
            else:
                num_rows = rows.cache.num_rows
                for _ in range(data.draw(st.sampled_from([1, 5, 70])) if next_token < 400 else 1):
                    rows.append(list(range(next_token, next_token + num_rows)))
                    next_token += num_rows
                if num_rows > 1:
                    places = st.integers(0, num_rows - 1)
                    rows.reorder(data.draw(st.lists(places, min_size=num_rows, max_size=num_rows)))
        kv_cache.check(each.cache for each in running)
        assert all(each.found == each.expected for each in running)
    for each in running:
        each.cache.clear()
    kv_cache.check([])


def test_rows_of_one_request_share_the_pages_of_their_prompt():
    kv_cache = PagedKVCache(ONE, MAX_ROWS, MAX_TOKENS)
    rows = Rows(kv_cache, 3, list(range(100)))
    assert len(rows.cache.pages) == 2
    rows.append([1, 2, 3])
    # The first row continues in the prompt's last page; the others begin a page each.
    assert len(rows.cache.pages) == 4


def test_a_freed_row_reads_the_blank_slot_and_a_padding_row_the_scratch_slot():
    kv_cache = PagedKVCache(ONE, MAX_ROWS, MAX_TOKENS)
    Rows(kv_cache, 1, list(range(200))).cache.clear()
    assert kv_cache.slot_table.slots.shape[2] >= 200
    assert (kv_cache.slot_table.slots[0, -1] == SCRATCH).all()
    assert (kv_cache.slot_table.slots[0, :-1] == BLANK).all()


def test_freeing_a_sequence_twice_frees_its_memory_once():
    kv_cache = PagedKVCache(ONE, MAX_ROWS, MAX_TOKENS)
    cache = Rows(kv_cache, 2, [1, 2]).cache
    cache.clear()
    cache.clear()
    kv_cache.check([])


def test_more_rows_or_pages_than_are_free_are_refused():
    kv_cache = PagedKVCache(ONE, MAX_ROWS, MAX_TOKENS)
    with pytest.raises(InvariantBroken, match="7 rows are wanted"):
        kv_cache.new_sequence(MAX_ROWS + 1)
    cache = kv_cache.new_sequence(1)
    with pytest.raises(InvariantBroken, match=f"{kv_cache.num_pages} pages are wanted"):
        cache.reserve_prompt(kv_cache.num_pages * PAGE_TOKENS)
    kv_cache.check([cache])


@pytest.mark.parametrize("num_tokens", [1, 64, 65, 640])
def test_there_are_pages_for_whatever_the_scheduler_admits(num_tokens):
    # The estimate counts a prompt for each row.
    kv_cache = PagedKVCache(ONE, 4, 2 * 2 * (num_tokens + 65))
    for _ in range(2):  # a prompt, and two rows with answers that end behind a page
        rows = Rows(kv_cache, 2, list(range(num_tokens)))
        for token in range(65):
            rows.append([token, token])
    assert len(kv_cache.free_pages) < kv_cache.num_pages / 2  # the loop ended
