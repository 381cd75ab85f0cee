"""PagePool: the keys and values of all sequences in one tensor, for a GPU.

A GPU wants one call for all rows, at addresses that stay where they are. So one pool of
columns is made once, handed out in pages, and a table says of each row in which column of
the pool each of its tokens is. Rows of one request share the columns of their prompt, and
beams that change places exchange entries of the table and move no column.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from engine.errors import InvariantBroken
from engine.kv_cache.contiguous import KVShape

PAGE_TOKENS = 64

# Two columns of the first page, which is no one's.
BLANK = 0  # zeros, read wherever a row has no token: a mask makes nothing of 0, but not of NaN
SCRATCH = 1  # written and read by the rows that fill up a step


class PagePool:
    """Always: each page but the first is free or held by one slot, and so is each row; the
    blank column is zero; a column is written once between two owners."""

    def __init__(
        self, shape: KVShape, max_rows: int, max_tokens: int, poisoned: bool = False
    ) -> None:
        """max_tokens: kept at once, of all rows, as the scheduler counts them
        poisoned: columns that nobody wrote are NaN, so that a test sees them read"""
        self.shape = shape
        self.max_rows = max_rows
        self.poisoned = poisoned
        self.num_pages = num_pages(max_rows, max_tokens)
        # (layers, columns, 2, heads, head size)
        self.pool = torch.empty(
            (shape.num_layers, self.num_pages * PAGE_TOKENS, 2, shape.num_heads, shape.head_size),
            dtype=shape.dtype,
            device=shape.device,
        )
        if poisoned:
            self.pool.fill_(torch.nan)
        self.pool[:, :PAGE_TOKENS] = 0
        # The last are handed out first, and those that were given back last.
        self.free_pages = list(range(1, self.num_pages))
        self.free_rows = list(range(max_rows))
        self.held: dict[int, PagedSequenceCache] = {}  # by its first row
        self.own = PageTable(max_rows, shape.device)
        self.crossed = PageTable(max_rows, shape.device)

    def slot(self, num_rows: int) -> PagedSequenceCache:
        slot = PagedSequenceCache(self, self._take(self.free_rows, num_rows))
        self.held[slot.rows[0]] = slot
        return slot

    def take_pages(self, num_tokens: int) -> list[int]:
        """For so many tokens."""
        return self._take(self.free_pages, -(-num_tokens // PAGE_TOKENS))

    def give_back(self, rows: list[int], pages: list[int]) -> None:
        """All that a slot has."""
        del self.held[rows[0]]
        if self.poisoned:
            for page in pages:
                self.pool[:, page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS] = torch.nan
        for row in rows:
            self.own.forget(row)
            self.crossed.forget(row)
        self.free_rows += rows
        self.free_pages += pages

    def free_all_but(self, slots: Iterable[PagedSequenceCache]) -> None:
        """Give back what others hold."""
        kept = {slot.rows[0] for slot in slots}
        for row, slot in list(self.held.items()):
            if row not in kept:
                slot.clear()

    def check(self, slots: Iterable[PagedSequenceCache]) -> None:
        """Raise InvariantBroken if others than these hold something, or two the same."""
        held = list(slots)
        for name, free, taken, all_ in (
            ("rows", self.free_rows, [each.rows for each in held], range(self.max_rows)),
            ("pages", self.free_pages, [each.pages for each in held], range(1, self.num_pages)),
        ):
            counted = sorted([*free, *(each for some in taken for each in some)])
            if counted != list(all_):
                raise InvariantBroken(
                    f"{len(free)} {name} are free, {sum(map(len, taken))} are held by "
                    f"{len(held)} slots, and there are {len(all_)}"
                )
        if self.pool[:, BLANK].count_nonzero():
            raise InvariantBroken("the blank column was written")

    @staticmethod
    def _take(free: list[int], number: int) -> list[int]:
        if number > len(free):
            # The scheduler lets nobody join for whom there is no room.
            raise InvariantBroken(
                f"{number} are wanted of a page pool in which {len(free)} are free"
            )
        taken = free[len(free) - number :]
        del free[len(free) - number :]
        return taken


class PageTable:
    """Of each row, and of one more that is none's: the column of the pool of each token."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self.columns = torch.zeros((max_rows + 1, 0), dtype=torch.int64, device=device)
        self.within_page = torch.arange(PAGE_TOKENS, device=device)

    def make_width(self, num_tokens: int) -> None:
        num_rows, width = self.columns.shape
        if num_tokens <= width:
            return
        wider = self.columns.new_full((num_rows, max(num_tokens, 2 * width)), BLANK)
        wider[:, :width] = self.columns
        wider[-1] = SCRATCH
        self.columns = wider

    def put(self, row: int, begin: int, pages: list[int]) -> None:
        """Lay pages out from a row's token `begin` on."""
        self.make_width(begin + len(pages) * PAGE_TOKENS)
        for at, page in enumerate(pages):
            start = begin + at * PAGE_TOKENS
            there = self.columns[row, start : start + PAGE_TOKENS]
            torch.add(self.within_page, page * PAGE_TOKENS, out=there)

    def share(self, rows: list[int], num_tokens: int) -> None:
        """Let all of them have the first tokens of the first."""
        for row in rows[1:]:
            self.columns[row, :num_tokens] = self.columns[rows[0], :num_tokens]

    def forget(self, row: int) -> None:
        self.columns[row] = BLANK


class PagedSequenceCache:
    """What one sequence holds of a page pool. Its rows share one length."""

    def __init__(self, page_pool: PagePool, rows: list[int]) -> None:
        self.page_pool = page_pool
        self.rows = rows
        self.num_rows = len(rows)
        self.pages: list[int] = []
        self.length = 0
        self.num_crossed = 0  # tokens that the encoder read
        self.room = [0] * len(rows)  # of each row: tokens for which it has columns
        self.row_numbers: Tensor | None = None
        if len(rows) > 1:
            self.row_numbers = torch.tensor(rows, device=page_pool.shape.device)

    @property
    def capacity(self) -> int:
        return min(self.room, default=0)

    def make_room(self, num_columns: int = 1) -> None:
        """In each row, for so many more tokens."""
        for at in range(len(self.rows)):
            self._extend(at, self.length + num_columns)

    def place_prompt(self, num_tokens: int) -> Tensor:
        """Make room for a prompt, once for all rows; returns its columns: (tokens,) int64."""
        self._extend(0, num_tokens)
        self.page_pool.own.share(self.rows, num_tokens)
        # A token that is yet to come goes into a column of its own row.
        self.room[1:] = [num_tokens] * (len(self.rows) - 1)
        return self.page_pool.own.columns[self.rows[0], :num_tokens]

    def filled(self, num_columns: int) -> None:
        self.length = num_columns

    def keep_crossed(self, crossed: Tensor) -> None:
        """crossed: (layers, 2, heads, tokens, head size)"""
        num_tokens = crossed.shape[3]
        table, pages = self.page_pool.crossed, self.page_pool.take_pages(num_tokens)
        self.pages += pages
        table.put(self.rows[0], 0, pages)
        table.share(self.rows, num_tokens)
        columns = table.columns[self.rows[0], :num_tokens]
        self.page_pool.pool.index_copy_(1, columns, crossed.permute(0, 3, 1, 2, 4))
        self.num_crossed = num_tokens

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was. rows: (rows,) int64"""
        assert self.row_numbers is not None
        used = self.page_pool.own.columns[:, : self.length]
        used.index_copy_(0, self.row_numbers, used.index_select(0, self.row_numbers[rows]))

    @torch.inference_mode()
    def clear(self) -> None:
        """Give everything back; once more does nothing."""
        if self.rows:
            self.page_pool.give_back(self.rows, self.pages)
        self.rows, self.pages, self.room = [], [], []
        self.length = self.num_crossed = 0

    def _extend(self, at: int, num_tokens: int) -> None:
        missing = num_tokens - self.room[at]
        if missing <= 0:
            return
        pages = self.page_pool.take_pages(missing)
        self.pages += pages
        self.page_pool.own.put(self.rows[at], self.room[at], pages)
        self.room[at] += len(pages) * PAGE_TOKENS


def num_pages(max_rows: int, max_tokens: int) -> int:
    """With which nobody who joins runs out: a row leaves a page begun, and so does a prompt."""
    return 1 + -(-max_tokens // PAGE_TOKENS) + 2 * max_rows
