"""Whoever takes and gives back, a row of a page pool reads what was written to it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvariantBroken
from engine.kv_cache.contiguous import KVShape
from engine.kv_cache.paged import BLANK, PAGE_TOKENS, SCRATCH, PagePool

ONE = KVShape(num_layers=1, num_heads=1, head_size=1, dtype=torch.int64, device=torch.device("cpu"))
MAX_ROWS, MAX_TOKENS = 6, 600


class Rows:
    """A slot, and what its rows should say."""

    def __init__(self, page_pool: PagePool, num_rows: int, prompt: list[int]) -> None:
        self.slot = page_pool.slot(num_rows)
        self.page_pool = page_pool
        columns = self.slot.place_prompt(len(prompt))
        page_pool.pool[0, columns, 0, 0, 0] = torch.tensor(prompt)
        self.slot.filled(len(prompt))
        self.said = [list(prompt) for _ in range(num_rows)]

    def say(self, tokens: list[int]) -> None:
        self.slot.make_room()
        for row, said, token in zip(self.slot.rows, self.said, tokens, strict=True):
            column = self.page_pool.own.columns[row, self.slot.length]
            self.page_pool.pool[0, column, 0, 0, 0] = token
            said.append(token)
        self.slot.length += 1

    def reorder(self, rows: list[int]) -> None:
        self.slot.reorder(torch.tensor(rows))
        self.said = [list(self.said[row]) for row in rows]

    @property
    def read(self) -> list[list[int]]:
        columns = self.page_pool.own.columns[self.slot.rows, : self.slot.length]
        return self.page_pool.pool[0, columns, 0, 0, 0].tolist()


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_row_reads_what_was_written_to_it(data):
    page_pool = PagePool(ONE, MAX_ROWS, MAX_TOKENS)
    held: list[Rows] = []
    told = 0
    for _ in range(data.draw(st.integers(1, 12))):
        free_rows = MAX_ROWS - sum(each.slot.num_rows for each in held)
        if free_rows and data.draw(st.booleans()):
            num_rows = data.draw(st.integers(1, min(3, free_rows)))
            length = data.draw(st.sampled_from([1, 63, 64, 65, 100]))
            held.append(Rows(page_pool, num_rows, list(range(told, told + length))))
            told += length
        elif held:
            rows = data.draw(st.sampled_from(held))
            if data.draw(st.integers(0, 3)) == 0:
                rows.slot.clear()
                held.remove(rows)
            else:
                num_rows = rows.slot.num_rows
                for _ in range(data.draw(st.sampled_from([1, 5, 70])) if told < 400 else 1):
                    rows.say(list(range(told, told + num_rows)))
                    told += num_rows
                if num_rows > 1:
                    places = st.integers(0, num_rows - 1)
                    rows.reorder(data.draw(st.lists(places, min_size=num_rows, max_size=num_rows)))
        page_pool.check(each.slot for each in held)
        assert all(each.read == each.said for each in held)
    for each in held:
        each.slot.clear()
    page_pool.check([])


def test_rows_of_one_request_have_their_prompt_once():
    page_pool = PagePool(ONE, MAX_ROWS, MAX_TOKENS)
    rows = Rows(page_pool, 3, list(range(100)))
    assert len(rows.slot.pages) == 2
    rows.say([1, 2, 3])
    # The first goes on where the prompt ends; the others begin a page each.
    assert len(rows.slot.pages) == 4


def test_rows_that_nobody_has_are_told_of_the_scratch_column():
    page_pool = PagePool(ONE, MAX_ROWS, MAX_TOKENS)
    Rows(page_pool, 1, list(range(200))).slot.clear()
    assert page_pool.own.columns.shape[1] >= 200
    assert (page_pool.own.columns[-1] == SCRATCH).all()
    assert (page_pool.own.columns[:-1] == BLANK).all()


def test_what_one_gives_back_twice_is_given_back_once():
    page_pool = PagePool(ONE, MAX_ROWS, MAX_TOKENS)
    slot = Rows(page_pool, 2, [1, 2]).slot
    slot.clear()
    slot.clear()
    page_pool.check([])


def test_nobody_gets_what_there_is_not():
    page_pool = PagePool(ONE, MAX_ROWS, MAX_TOKENS)
    with pytest.raises(InvariantBroken, match="7 are wanted"):
        page_pool.slot(MAX_ROWS + 1)
    slot = page_pool.slot(1)
    with pytest.raises(InvariantBroken, match=f"{page_pool.num_pages} are wanted"):
        slot.place_prompt(page_pool.num_pages * PAGE_TOKENS)
    page_pool.check([slot])


@pytest.mark.parametrize("num_tokens", [1, 64, 65, 640])
def test_pages_are_enough_for_what_the_scheduler_lets_in(num_tokens):
    # It counts a prompt for each row.
    page_pool = PagePool(ONE, 4, 2 * 2 * (num_tokens + 65))
    for _ in range(2):  # a prompt, and two rows with answers that end behind a page
        rows = Rows(page_pool, 2, list(range(num_tokens)))
        for token in range(65):
            rows.say([token, token])
    assert len(page_pool.free_pages) < page_pool.num_pages / 2  # it was not endless
