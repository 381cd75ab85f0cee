"""PagedKVCache: the keys and values of all sequences in one tensor of pages, for a GPU.

A GPU needs one call for all rows, at addresses that do not change. So one tensor of token slots
is made once and handed out in pages, and a table says of each row in which token slot each of
its tokens is. Rows of one request share the token slots of their prompt, and beams that change
places exchange entries of the table and move no keys. Sequences whose prompts begin alike refer to
the same pages: only full ones, which nobody writes to any more, so that none has to be copied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import InvariantBroken
from engine.kv_cache.base import KVShape
from engine.kv_cache.encoded import Encoded, check_holders
from engine.kv_cache.planning.row_size import RowSize
from engine.kv_cache.prefix_cache import KeptBlock, PrefixCache, PromptBlocks

PAGE_TOKENS = 64

# Two token slots of the first page, which no sequence owns.
BLANK = 0  # zeros, read wherever a row has no token: a mask makes nothing of 0, but not of NaN
SCRATCH = 1  # written and read by the rows that pad a step


class PagedKVCache:
    """The KVCacheManager of PagedSequenceCaches. Always: each page but the first is free, owned
    by one sequence, held by those that share an encoder's output, or a prefix that is kept; each
    row is free or owned; the blank token slot is zero; a token slot is written once between two
    owners."""

    def __init__(
        self,
        shape: KVShape,
        max_rows: int,
        max_tokens: int,
        poisoned: bool = False,
        max_prefix_tokens: int = 0,
    ) -> None:
        """max_tokens: kept at once, of all rows, as the scheduler counts them
        poisoned: memory that was never written is NaN, so that a test sees it read
        max_prefix_tokens: of prefixes kept for other sequences, as long as no sequence needs their
                           pages; 0: none are"""
        self.shape = shape
        self.max_rows = max_rows
        self.poisoned = poisoned
        self.row_size: RowSize | None = None
        self.num_pages = num_pages(max_rows, max_tokens)
        # (layers, token slots, 2, heads, head size)
        self.kv = torch.empty(
            (shape.num_layers, self.num_pages * PAGE_TOKENS, 2, shape.num_heads, shape.head_size),
            dtype=shape.dtype,
            device=shape.device,
        )
        if poisoned:
            self.kv.fill_(torch.nan)
        self.kv[:, :PAGE_TOKENS] = 0
        # The last are handed out first, and those that were freed last.
        self.free_pages = list(range(1, self.num_pages))
        self.free_rows = list(range(max_rows))
        self.prefixes: PrefixCache[int] | None = None
        if max_prefix_tokens:
            max_blocks = max_prefix_tokens // PAGE_TOKENS
            self.prefixes = PrefixCache(PAGE_TOKENS, max_blocks, self._free_page)
        self.sequences: dict[int, PagedSequenceCache] = {}  # by the first row
        self.slot_table = SlotTable(max_rows, shape.device)
        self.encoded_slot_table = SlotTable(max_rows, shape.device)

    def set_windows(self, windows: tuple[int | None, ...]) -> None:
        """All tokens are kept, whatever the windows are."""

    def new_sequence(self, num_rows: int, max_tokens: int = 0) -> PagedSequenceCache:
        cache = PagedSequenceCache(self, self._take(self.free_rows, num_rows, "rows"))
        self.sequences[cache.rows[0]] = cache
        return cache

    def take_pages(self, num_tokens: int) -> list[int]:
        """Hand out pages with token slots for `num_tokens`."""
        num_pages = -(-num_tokens // PAGE_TOKENS)
        if self.prefixes is not None and num_pages > len(self.free_pages):
            num_missing = num_pages - len(self.free_pages)
            self.prefixes.shrink(len(self.prefixes.kept) - num_missing)
        return self._take(self.free_pages, num_pages, "pages")

    def give_back(self, rows: list[int], pages: list[int]) -> None:
        """Take back all rows and pages of a sequence."""
        del self.sequences[rows[0]]
        for row in rows:
            self.slot_table.clear_row(row)
            self.encoded_slot_table.clear_row(row)
        self.free_rows += rows
        self.give_back_pages(pages)

    def give_back_pages(self, pages: list[int]) -> None:
        for page in pages:
            self._free_page(page)

    def _free_page(self, page: int) -> None:
        if self.poisoned:
            with torch.inference_mode():
                self.kv[:, page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS] = torch.nan
        self.free_pages.append(page)

    def free_all_but(self, caches: Iterable[PagedSequenceCache]) -> None:
        owners = {cache.rows[0] for cache in caches}
        for row, cache in list(self.sequences.items()):
            if row not in owners:
                cache.clear()

    def check(self, caches: Iterable[PagedSequenceCache]) -> None:
        owners = list(caches)
        pages = [each.pages for each in owners]
        pages += [each.content.pages for each in check_holders(owners)]
        if self.prefixes is not None:
            pages.append([each.place for each in self.prefixes.kept.values()])
            self.prefixes.check(Counter(id(block) for each in owners for block in each.shared))
        for name, free, taken, all_ in (
            ("rows", self.free_rows, [each.rows for each in owners], range(self.max_rows)),
            ("pages", self.free_pages, pages, range(1, self.num_pages)),
        ):
            counted = sorted([*free, *(each for some in taken for each in some)])
            if counted != list(all_):
                raise InvariantBroken(
                    f"{len(free)} {name} are free, {sum(map(len, taken))} are owned by "
                    f"{len(owners)} sequences, and there are {len(all_)}"
                )
        if self.kv[:, BLANK].count_nonzero():
            raise InvariantBroken("the blank token slot was written")

    @staticmethod
    def _take(free: list[int], number: int, name: str) -> list[int]:
        if number > len(free):
            # The scheduler admits no sequence for which there is no room.
            raise InvariantBroken(f"{number} {name} are wanted, and {len(free)} are free")
        taken = free[len(free) - number :]
        del free[len(free) - number :]
        return taken


@dataclass(frozen=True, slots=True)
class EncodedPages:
    """An encoder's output for one prompt, which several sequences may hold."""

    pages: list[int]
    num_tokens: int


class SlotTable:
    """The token slot of each token of each row. The row after the last pads steps: all of its
    token slots are SCRATCH."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self.slots = torch.zeros((max_rows + 1, 0), dtype=torch.int64, device=device)
        self.within_page = torch.arange(PAGE_TOKENS, device=device)

    def widen(self, num_tokens: int) -> None:
        """Make sure that the table has `num_tokens` columns."""
        num_rows, width = self.slots.shape
        if num_tokens <= width:
            return
        wider = self.slots.new_full((num_rows, max(num_tokens, 2 * width)), BLANK)
        wider[:, :width] = self.slots
        wider[-1] = SCRATCH
        self.slots = wider

    def append_pages(self, row: int, begin: int, pages: list[int]) -> None:
        """Give a row the token slots of `pages` from its token `begin` on."""
        self.widen(begin + len(pages) * PAGE_TOKENS)
        for at, page in enumerate(pages):
            start = begin + at * PAGE_TOKENS
            slots = self.slots[row, start : start + PAGE_TOKENS]
            torch.add(self.within_page, page * PAGE_TOKENS, out=slots)

    def share(self, rows: list[int], num_tokens: int) -> None:
        """Give all of `rows` the first token slots of the first of them."""
        for row in rows[1:]:
            self.slots[row, :num_tokens] = self.slots[rows[0], :num_tokens]

    def clear_row(self, row: int) -> None:
        self.slots[row] = BLANK


class PagedSequenceCache:
    """A SequenceCache in pages of a PagedKVCache."""

    def __init__(self, kv_cache: PagedKVCache, rows: list[int]) -> None:
        self.kv_cache = kv_cache
        self.rows = rows
        self.num_rows = len(rows)
        self.pages: list[int] = []  # its own
        self.shared: list[KeptBlock[int]] = []  # pages of its prompt that others may read
        self.first_row_pages: list[int] = []  # of both kinds, in the order of their tokens
        self.length = 0
        self.encoded: Encoded[EncodedPages] | None = None
        self.row_capacities = [0] * len(rows)  # tokens for which each row has token slots
        self.row_numbers: Tensor | None = None
        if len(rows) > 1:
            self.row_numbers = torch.tensor(rows, device=kv_cache.shape.device)

    @property
    def capacity(self) -> int:
        return min(self.row_capacities, default=0)

    def reserve(self, num_tokens: int = 1) -> None:
        for at in range(len(self.rows)):
            self._extend(at, self.length + num_tokens)

    def reserve_prompt(self, num_tokens: int) -> Tensor:
        """Reserve token slots for the first tokens of a prompt, once for all rows; returns them:
        (tokens,) int64."""
        self._extend(0, num_tokens)
        self.kv_cache.slot_table.share(self.rows, num_tokens)
        # A token that is yet to come goes into a token slot of its own row.
        self.row_capacities[1:] = [num_tokens] * (len(self.rows) - 1)
        return self.kv_cache.slot_table.slots[self.rows[0], :num_tokens]

    def take_prefix(self, blocks: PromptBlocks) -> None:
        """Begin with the pages that are kept of the prompt."""
        for block in blocks.cache.use(blocks):
            block.num_users += 1
            self.shared.append(block)
            self._append(0, [block.place])
            self.length += PAGE_TOKENS

    def keep_prefix(self, blocks: PromptBlocks) -> None:
        """Leave what is to be kept of the prompt to the cache of prefixes, and go on reading it."""
        for block in blocks.cache.keep(blocks, self.length, self.first_row_pages.__getitem__):
            block.num_users += 1
            self.shared.append(block)
            self.pages.remove(block.place)

    def commit_prompt(self, num_tokens: int) -> None:
        self.length = num_tokens

    def commit_token(self) -> None:
        self.length += 1

    @property
    def num_encoded_tokens(self) -> int:
        return 0 if self.encoded is None else self.encoded.content.num_tokens

    @torch.inference_mode()
    def write_encoded(self, keys_values: Tensor) -> Encoded[EncodedPages]:
        num_tokens = keys_values.shape[3]
        pages = EncodedPages(self.kv_cache.take_pages(num_tokens), num_tokens)
        encoded = Encoded(pages, lambda freed: self.kv_cache.give_back_pages(freed.pages))
        self.share_encoded(encoded)
        slots = self.kv_cache.encoded_slot_table.slots[self.rows[0], :num_tokens]
        self.kv_cache.kv.index_copy_(1, slots, keys_values.permute(0, 3, 1, 2, 4))
        return encoded

    def share_encoded(self, encoded: Encoded[EncodedPages]) -> None:
        self.encoded = encoded.hold(self)
        table = self.kv_cache.encoded_slot_table
        table.append_pages(self.rows[0], 0, encoded.content.pages)
        table.share(self.rows, encoded.content.num_tokens)

    def reorder(self, rows: Tensor) -> None:
        assert self.row_numbers is not None
        used = self.kv_cache.slot_table.slots[:, : self.length]
        used.index_copy_(0, self.row_numbers, used.index_select(0, self.row_numbers[rows]))

    @torch.inference_mode()
    def clear(self) -> None:
        if self.rows:
            self.kv_cache.give_back(self.rows, self.pages)
        for block in self.shared:
            block.num_users -= 1
        if self.encoded is not None:
            self.encoded.release(self)
        self.rows, self.pages, self.row_capacities = [], [], []
        self.shared, self.first_row_pages = [], []
        self.length, self.encoded = 0, None

    def _extend(self, at: int, num_tokens: int) -> None:
        missing = num_tokens - self.row_capacities[at]
        if missing <= 0:
            return
        pages = self.kv_cache.take_pages(missing)
        self.pages += pages
        self._append(at, pages)

    def _append(self, at: int, pages: list[int]) -> None:
        """Let a row go on in these pages."""
        self.kv_cache.slot_table.append_pages(self.rows[at], self.row_capacities[at], pages)
        self.row_capacities[at] += len(pages) * PAGE_TOKENS
        if at == 0:
            self.first_row_pages += pages


def num_pages(max_rows: int, max_tokens: int) -> int:
    """The number of pages for whatever the scheduler admits: a row, and a prompt, may each leave a
    page half full."""
    return 1 + -(-max_tokens // PAGE_TOKENS) + 2 * max_rows


def padded_to_pages(num_tokens: int) -> int:
    """`num_tokens` rounded up to pages whose number is a power of two; 0 for 0."""
    if num_tokens == 0:
        return 0
    return PAGE_TOKENS * next_power_of_two(-(-num_tokens // PAGE_TOKENS))


def next_power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
