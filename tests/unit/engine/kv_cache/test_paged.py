"""Whoever takes and gives back, a row of an arena reads what was written to it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvariantBroken
from engine.kv_cache.contiguous import KVShape
from engine.kv_cache.paged import BLANK, PAGE_TOKENS, SCRATCH, Arena

ONE = KVShape(num_layers=1, num_heads=1, head_size=1, dtype=torch.int64, device=torch.device("cpu"))
MAX_ROWS, MAX_TOKENS = 6, 600


class Rows:
    """A slot, and what its rows should say."""

    def __init__(self, arena: Arena, num_rows: int, prompt: list[int]) -> None:
        self.slot = arena.slot(num_rows)
        self.arena = arena
        columns = self.slot.place_prompt(len(prompt))
        arena.pool[0, columns, 0, 0, 0] = torch.tensor(prompt)
        self.slot.filled(len(prompt))
        self.said = [list(prompt) for _ in range(num_rows)]

    def say(self, tokens: list[int]) -> None:
        self.slot.make_room()
        for row, said, token in zip(self.slot.rows, self.said, tokens, strict=True):
            column = self.arena.own.columns[row, self.slot.length]
            self.arena.pool[0, column, 0, 0, 0] = token
            said.append(token)
        self.slot.length += 1

    def reorder(self, rows: list[int]) -> None:
        self.slot.reorder(torch.tensor(rows))
        self.said = [list(self.said[row]) for row in rows]

    @property
    def read(self) -> list[list[int]]:
        columns = self.arena.own.columns[self.slot.rows, : self.slot.length]
        return self.arena.pool[0, columns, 0, 0, 0].tolist()


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_row_reads_what_was_written_to_it(data):
    arena = Arena(ONE, MAX_ROWS, MAX_TOKENS)
    held: list[Rows] = []
    told = 0
    for _ in range(data.draw(st.integers(1, 12))):
        free_rows = MAX_ROWS - sum(each.slot.num_rows for each in held)
        if free_rows and data.draw(st.booleans()):
            num_rows = data.draw(st.integers(1, min(3, free_rows)))
            length = data.draw(st.sampled_from([1, 63, 64, 65, 100]))
            held.append(Rows(arena, num_rows, list(range(told, told + length))))
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
        arena.check(each.slot for each in held)
        assert all(each.read == each.said for each in held)
    for each in held:
        each.slot.clear()
    arena.check([])


def test_rows_of_one_request_have_their_prompt_once():
    arena = Arena(ONE, MAX_ROWS, MAX_TOKENS)
    rows = Rows(arena, 3, list(range(100)))
    assert len(rows.slot.pages) == 2
    rows.say([1, 2, 3])
    # The first goes on where the prompt ends; the others begin a page each.
    assert len(rows.slot.pages) == 4


def test_rows_that_nobody_has_are_told_of_the_scratch_column():
    arena = Arena(ONE, MAX_ROWS, MAX_TOKENS)
    Rows(arena, 1, list(range(200))).slot.clear()
    assert arena.own.columns.shape[1] >= 200
    assert (arena.own.columns[-1] == SCRATCH).all()
    assert (arena.own.columns[:-1] == BLANK).all()


def test_what_one_gives_back_twice_is_given_back_once():
    arena = Arena(ONE, MAX_ROWS, MAX_TOKENS)
    slot = Rows(arena, 2, [1, 2]).slot
    slot.clear()
    slot.clear()
    arena.check([])


def test_nobody_gets_what_there_is_not():
    arena = Arena(ONE, MAX_ROWS, MAX_TOKENS)
    with pytest.raises(InvariantBroken, match="7 are wanted"):
        arena.slot(MAX_ROWS + 1)
    slot = arena.slot(1)
    with pytest.raises(InvariantBroken, match=f"{arena.num_pages} are wanted"):
        slot.place_prompt(arena.num_pages * PAGE_TOKENS)
    arena.check([slot])


@pytest.mark.parametrize("num_tokens", [1, 64, 65, 640])
def test_pages_are_enough_for_what_the_scheduler_lets_in(num_tokens):
    # It counts a prompt for each row.
    arena = Arena(ONE, 4, 2 * 2 * (num_tokens + 65))
    for _ in range(2):  # a prompt, and two rows with answers that end behind a page
        rows = Rows(arena, 2, list(range(num_tokens)))
        for token in range(65):
            rows.say([token, token])
    assert len(arena.free_pages) < arena.num_pages / 2  # it was not endless
