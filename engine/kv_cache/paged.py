"""PagedKVCache: the keys and values of all sequences in one tensor of pages, for a GPU.

A GPU needs one call for all rows, at fixed addresses. So one tensor of token slots is allocated
once and handed out in pages, and a table gives the token slot of each token of each row. Rows of
one request share the slots of their prompt; reordered beams exchange table entries and copy no
keys. Sequences with a common prefix share its full pages, which are never written again, so none is
copied.

Layers with a window form their own groups (`page_groups.py`). A page that lies wholly before the
window is freed when its sequence needs the next one, so that a row keeps at most `max_tokens_kept`
tokens there. Such pages of a shared prefix are freed when memory is needed; from then on no
sequence can start with that prefix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from engine.errors import InvariantBroken
from engine.kv_cache.base import KVShape
from engine.kv_cache.encoded import Encoded, check_holders
from engine.kv_cache.layer_group import SLICE_TOKENS, layer_numbers
from engine.kv_cache.page_groups import page_groups
from engine.kv_cache.planning.row_size import RowSize
from engine.kv_cache.prefix_cache import KeptBlock, PrefixCache, PromptBlocks

PAGE_TOKENS = 64

# Two token slots of the first page, which no sequence owns.
BLANK = 0  # zeros, read where a row has no token: masking removes 0 but not NaN
SCRATCH = 1  # written and read by the rows that pad a step

FREED = 0  # marks a freed page


class PagedKVCache:
    """The KVCacheManager of PagedSequenceCaches.

    Always: each page but the first is free, owned by one sequence, held by the sequences that share
    an encoder's output, or part of a cached prefix. Each row is free or owned. The blank token slot
    is zero. A token slot is written once between two owners.
    """

    def __init__(
        self,
        shape: KVShape,
        max_rows: int,
        max_tokens: int,
        poisoned: bool = False,
        max_prefix_tokens: int = 0,
        windows: tuple[int | None, ...] = (),
    ) -> None:
        """max_tokens:        kept at once, of all rows, as the scheduler counts them
        poisoned:          unwritten memory is NaN, so that a test notices a read
        max_prefix_tokens: of cached prefixes, while no sequence needs their pages; 0: no prefix
                           cache
        windows:           of each layer; (): no layer has one
        """
        self.shape = shape
        self.max_rows = max_rows
        self.poisoned = poisoned
        self.max_tokens = max_tokens
        self.free_rows = list(range(max_rows))
        self.prefixes: PrefixCache[BlockPages] | None = None
        if max_prefix_tokens:
            max_blocks = max_prefix_tokens // PAGE_TOKENS
            self.prefixes = PrefixCache(PAGE_TOKENS, max_blocks, self._free_block)
        self.sequences: dict[int, PagedSequenceCache] = {}  # by the first row
        self._lay_out(windows)

    def set_windows(self, windows: tuple[int | None, ...]) -> None:
        if windows != self.windows:
            assert not self.sequences
            if self.prefixes is not None:
                self.prefixes.shrink(0)
            del self.kv  # before the new one is allocated
            self._lay_out(windows)

    def _lay_out(self, windows: tuple[int | None, ...]) -> None:
        """Allocate the pages of all groups of layers, and their tables."""
        shape = self.shape
        self.windows = windows  # of each layer; (): none has one
        self.groups, layers_a_page = page_groups(shape.num_layers, windows)
        self.longest_window = max((each.window or 0 for each in self.groups), default=0)
        # Of each layer: its group, and its number there.
        self.places = {
            layer: (number, at)
            for number, group in enumerate(self.groups)
            for at, layer in enumerate(layer_numbers(shape.num_layers, group.layers))
        }
        bounds = [None if each.window is None else max_tokens_kept(each.window)
                  for each in self.groups]  # fmt: skip
        self.row_size = RowSize.of_groups(shape, ((layers_a_page, each) for each in bounds))
        # Tokens of one group, in the memory of `max_tokens` of all layers.
        num_tokens = -(-self.max_tokens * shape.num_layers // layers_a_page)
        self.num_pages = num_pages(self.max_rows * len(self.groups), num_tokens)
        # (layers of a group, token slots, 2, heads, head size)
        self.kv = torch.empty(
            (layers_a_page, self.num_pages * PAGE_TOKENS, 2, shape.num_heads, shape.head_size),
            dtype=shape.dtype,
            device=shape.device,
        )
        if self.poisoned:
            self.kv.fill_(torch.nan)
        self.kv[:, :PAGE_TOKENS] = 0
        # The last are handed out first, and those that were freed last.
        self.free_pages = list(range(1, self.num_pages))
        self.slot_table = SlotTable(len(self.groups), self.max_rows, shape.device)
        self.encoded_slot_table = SlotTable(len(self.groups), self.max_rows, shape.device)

    def new_sequence(self, num_rows: int, max_tokens: int = 0) -> PagedSequenceCache:
        cache = PagedSequenceCache(self, self._take(self.free_rows, num_rows, "rows"))
        self.sequences[cache.rows[0]] = cache
        return cache

    def take_pages(self, num_tokens: int) -> list[int]:
        """Take free pages with token slots for `num_tokens`."""
        num_pages = -(-num_tokens // PAGE_TOKENS)
        if self.prefixes is not None and num_pages > len(self.free_pages):
            self._make_room(self.prefixes, num_pages)
        return self._take(self.free_pages, num_pages, "pages")

    def give_back(self, rows: list[int], pages: list[int]) -> None:
        """Free all rows and pages of a sequence."""
        del self.sequences[rows[0]]
        for row in rows:
            self.slot_table.clear_row(row)
            self.encoded_slot_table.clear_row(row)
        self.free_rows += rows
        self.give_back_pages(pages)

    def give_back_pages(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._free_page(page)

    def _make_room(self, prefixes: PrefixCache[BlockPages], num_pages: int) -> None:
        """Free cached prefixes until `num_pages` pages are free or all that remain are in use.

        After that, free the pages that lie before the windows of all sequences that read them.
        """
        is_less = True
        while is_less and (num_missing := num_pages - len(self.free_pages)) > 0:
            num_kept = len(prefixes.kept)
            prefixes.shrink(num_kept - -(-num_missing // len(self.groups)))
            is_less = len(prefixes.kept) < num_kept
        for block in prefixes.kept.values() if self.longest_window else ():
            if len(self.free_pages) >= num_pages:
                return
            pages = block.place
            if block.is_whole and not pages.num_window_users:
                block.is_whole = False
                for at, group in enumerate(self.groups):
                    if group.window is not None:
                        self._free_page(pages.of_groups[at])
                        pages.of_groups[at] = FREED

    def _free_block(self, pages: BlockPages) -> None:
        self.give_back_pages(page for page in pages.of_groups if page != FREED)

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
        pages += [some for each in check_holders(owners) for some in each.content.pages]
        if self.prefixes is not None:
            kept = [each.place for each in self.prefixes.kept.values()]
            pages += [[page for page in each.of_groups if page != FREED] for each in kept]
            window_users = Counter(id(each.place) for one in owners for _, each in one.in_window)
            if any(window_users[id(each)] != each.num_window_users for each in kept):
                raise InvariantBroken("the windows that show pages of prompts are counted wrongly")
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
    """The pages of an encoder's output, which several sequences may hold."""

    pages: list[list[int]]  # of each group of layers
    num_tokens: int


@dataclass(slots=True)
class BlockPages:
    """The pages of a prompt block that several sequences may read."""

    of_groups: list[int]  # a page of each group of layers, or FREED
    num_window_users: int = 0  # sequences with a part of it in their windows


class SlotTable:
    """The token slot of each token of each row, in the pages of each group of layers.

    The row after the last is for padding: all of its token slots are SCRATCH. Slots in pages that a
    window has passed stay in the table and are not read.
    """

    def __init__(self, num_groups: int, max_rows: int, device: torch.device) -> None:
        sizes = (num_groups, max_rows + 1, 0)
        self.slots = torch.zeros(sizes, dtype=torch.int64, device=device)
        self.within_page = torch.arange(PAGE_TOKENS, device=device)

    def widen(self, num_tokens: int) -> None:
        """Make sure that the table has `num_tokens` columns."""
        num_groups, num_rows, width = self.slots.shape
        if num_tokens <= width:
            return
        wider = self.slots.new_full((num_groups, num_rows, max(num_tokens, 2 * width)), BLANK)
        wider[:, :, :width] = self.slots
        wider[:, -1] = SCRATCH
        self.slots = wider

    def append_pages(self, group: int, row: int, begin: int, pages: list[int]) -> None:
        """Append a group's `pages` to a row, from its token `begin` on."""
        self.widen(begin + len(pages) * PAGE_TOKENS)
        for at, page in enumerate(pages):
            start = begin + at * PAGE_TOKENS
            slots = self.slots[group, row, start : start + PAGE_TOKENS]
            torch.add(self.within_page, page * PAGE_TOKENS, out=slots)

    def share(self, rows: list[int], num_tokens: int) -> None:
        """Give all of `rows` the first `num_tokens` token slots of the first of them."""
        for row in rows[1:]:
            self.slots[:, row, :num_tokens] = self.slots[:, rows[0], :num_tokens]

    def clear_row(self, row: int) -> None:
        self.slots[:, row] = BLANK


class PagedSequenceCache:
    """A SequenceCache in pages of a PagedKVCache."""

    def __init__(self, kv_cache: PagedKVCache, rows: list[int]) -> None:
        self.kv_cache = kv_cache
        self.rows = rows
        self.num_rows = len(rows)
        num_groups = len(kv_cache.groups)
        # Its own pages, by group of layers, each with the index of the token after it.
        self.owned: list[list[tuple[int, int]]] = [[] for _ in range(num_groups)]
        self.shared: list[KeptBlock[BlockPages]] = []  # of its prompt, that others may read
        # Shared blocks in some window, each with the index of the token after it.
        self.in_window: list[tuple[int, KeptBlock[BlockPages]]] = []
        # Owned, shared and freed pages, by group, in order of their tokens.
        self.first_row_pages: list[list[int]] = [[] for _ in range(num_groups)]
        self.num_left = 0  # tokens before all windows, some of whose pages were freed
        self.length = 0
        self.encoded: Encoded[EncodedPages] | None = None
        self.row_capacities = [0] * len(rows)  # tokens for which each row has token slots
        self.row_numbers: Tensor | None = None
        if len(rows) > 1:
            self.row_numbers = torch.tensor(rows, device=kv_cache.shape.device)

    @property
    def pages(self) -> list[int]:
        """The pages that this sequence owns."""
        return [page for owned in self.owned for _, page in owned]

    @property
    def capacity(self) -> int:
        return min(self.row_capacities, default=0)

    def reserve(self, num_tokens: int = 1) -> None:
        for at in range(len(self.rows)):
            self._extend(at, self.length + num_tokens)

    def reserve_prompt(self, num_tokens: int) -> Tensor:
        """Reserve token slots for the first tokens of a prompt, which all rows share.

        Returns (groups of layers, tokens) int64. Slots that a window has passed must not be used.
        """
        self._extend(0, num_tokens)
        self.kv_cache.slot_table.share(self.rows, num_tokens)
        # A future token goes into a slot of its own row.
        self.row_capacities[1:] = [num_tokens] * (len(self.rows) - 1)
        return self.kv_cache.slot_table.slots[:, self.rows[0], :num_tokens]

    def take_prefix(self, blocks: PromptBlocks) -> None:
        """Start with the cached pages of the prompt."""
        for block in blocks.cache.use(blocks):
            for group, page in enumerate(block.place.of_groups):
                self._append(group, 0, [page])
            self.row_capacities[0] += PAGE_TOKENS
            self.length += PAGE_TOKENS
            self._share(block, self.length)
        self._leave()

    def keep_prefix(self, blocks: PromptBlocks) -> None:
        """Hand pages of the prompt to the prefix cache, and keep reading them."""

        def place_of(number: int) -> BlockPages:
            return BlockPages([each[number] for each in self.first_row_pages])

        kept = blocks.cache.keep(blocks, self.length, place_of, self.num_left)
        if not kept:
            return
        ends = {page: end for owned in self.owned for end, page in owned}
        for block in kept:
            self._share(block, ends[block.place.of_groups[0]])
        shared = {page for block in kept for page in block.place.of_groups}
        self.owned = [[each for each in owned if each[1] not in shared] for owned in self.owned]

    def _share(self, block: KeptBlock[BlockPages], end: int) -> None:
        """Start to read a block of the prefix cache. end: the index of the token after it"""
        block.num_users += 1
        self.shared.append(block)
        if self.kv_cache.longest_window:
            block.place.num_window_users += 1
            self.in_window.append((end, block))

    def commit_prompt(self, num_tokens: int) -> None:
        self.length = num_tokens

    def commit_token(self) -> None:
        self.length += 1

    @property
    def num_encoded_tokens(self) -> int:
        return 0 if self.encoded is None else self.encoded.content.num_tokens

    @torch.inference_mode()
    def write_encoded(self, keys_values: Tensor) -> Encoded[EncodedPages]:
        num_tokens, kv_cache = keys_values.shape[3], self.kv_cache
        pages = EncodedPages([kv_cache.take_pages(num_tokens) for _ in self.owned], num_tokens)
        encoded = Encoded(pages, lambda freed: kv_cache.give_back_pages(chain(*freed.pages)))
        self.share_encoded(encoded)
        slots = kv_cache.encoded_slot_table.slots[:, self.rows[0], :num_tokens]
        for number, group in enumerate(kv_cache.groups):
            written = keys_values[group.layers].permute(0, 3, 1, 2, 4)
            kv_cache.kv[: len(written)].index_copy_(1, slots[number], written)
        return encoded

    def share_encoded(self, encoded: Encoded[EncodedPages]) -> None:
        self.encoded = encoded.hold(self)
        table = self.kv_cache.encoded_slot_table
        for group, pages in enumerate(encoded.content.pages):
            table.append_pages(group, self.rows[0], 0, pages)
        table.share(self.rows, encoded.content.num_tokens)

    def reorder(self, rows: Tensor) -> None:
        assert self.row_numbers is not None
        used = self.kv_cache.slot_table.slots[:, :, : self.length]
        used.index_copy_(1, self.row_numbers, used.index_select(1, self.row_numbers[rows]))

    @torch.inference_mode()
    def clear(self) -> None:
        if self.rows:
            self.kv_cache.give_back(self.rows, self.pages)
        for block in self.shared:
            block.num_users -= 1
        for _, block in self.in_window:
            block.place.num_window_users -= 1
        if self.encoded is not None:
            self.encoded.release(self)
        self.rows, self.row_capacities = [], []
        self.shared, self.in_window = [], []
        self.owned, self.first_row_pages = [[] for _ in self.owned], [[] for _ in self.owned]
        self.length, self.num_left, self.encoded = 0, 0, None

    def _extend(self, at: int, num_tokens: int) -> None:
        missing = num_tokens - self.row_capacities[at]
        if missing <= 0:
            return
        self._leave()
        begin, num_pages = self.row_capacities[at], -(-missing // PAGE_TOKENS)
        ends = [begin + PAGE_TOKENS * (1 + each) for each in range(num_pages)]
        for group, owned in enumerate(self.owned):
            pages = self.kv_cache.take_pages(missing)
            owned += zip(ends, pages, strict=True)
            self._append(group, at, pages)
        self.row_capacities[at] += num_pages * PAGE_TOKENS

    def _append(self, group: int, at: int, pages: list[int]) -> None:
        """Append pages of a group to the row at `at`."""
        table = self.kv_cache.slot_table
        table.append_pages(group, self.rows[at], self.row_capacities[at], pages)
        if at == 0:
            self.first_row_pages[group] += pages

    def _leave(self) -> None:
        """Free the pages that windows have passed."""
        for number, group in enumerate(self.kv_cache.groups):
            if group.window is None or self.length < group.window + PAGE_TOKENS:
                continue
            owned, num_left = self.owned[number], self.length - group.window
            self.num_left = max(self.num_left, num_left // PAGE_TOKENS * PAGE_TOKENS)
            self.kv_cache.give_back_pages(page for end, page in owned if end <= num_left)
            self.owned[number] = [each for each in owned if each[0] > num_left]
        if self.in_window:
            num_left = self.length - self.kv_cache.longest_window
            for end, block in self.in_window:
                block.place.num_window_users -= end <= num_left
            self.in_window = [each for each in self.in_window if each[0] > num_left]


def max_tokens_kept(window: int) -> int:
    """The most tokens for which a row has pages in a layer with a window.

    They are the window, a slice of a prompt, and the rest of the first and the last page.
    """
    return window + SLICE_TOKENS + 2 * PAGE_TOKENS


def num_pages(max_rows: int, max_tokens: int) -> int:
    """The number of pages for anything the scheduler admits.

    A row, and a prompt, may each leave a page half full.
    """
    return 1 + -(-max_tokens // PAGE_TOKENS) + 2 * max_rows


def padded_to_pages(num_tokens: int) -> int:
    """`num_tokens` rounded up to pages whose number is a power of two; 0 for 0."""
    if num_tokens == 0:
        return 0
    return PAGE_TOKENS * next_power_of_two(-(-num_tokens // PAGE_TOKENS))


def next_power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
