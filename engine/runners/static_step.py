"""StaticStep: a step in one of few shapes, told what it computes in tensors that stay.

A GPU that is given one small kernel after another waits for them most of the time. A graph
of them is launched at once, but does the same work at the same addresses each time. So a
step's rows, and the tokens that they look back on, are filled up to the next of a few
sizes, and all that differs between two steps of one shape is written into the same tensors
before it runs. Nothing in it asks for a number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from engine.kv_cache.paged import PAGE_TOKENS, PagedSequenceCache, PagePool
from engine.runners.cuda_graphs import GraphCache

# The lines of `told`, of each row:
ROW, LENGTH, CROSSED, TOKEN = range(4)  # in the page_pool; tokens before this one; of the prompt


# Rows times tokens, filled up, that a step looks back on in each layer. A long row among many
# short ones would make all of them as long, so that it takes a step of its own.
MAX_PLACES = 2**18


@dataclass(frozen=True, slots=True)
class StepShape:
    num_rows: int
    num_columns: int  # tokens of a row with the new one, at most
    num_crossed: int  # tokens of a prompt at most; 0 without an encoder

    @classmethod
    def of(cls, slots: list[PagedSequenceCache]) -> StepShape:
        """The smallest that holds them."""
        return cls(
            power_of_two(sum(each.num_rows for each in slots)),
            in_pages(max(each.length for each in slots) + 1),
            in_pages(max(each.num_crossed for each in slots)),
        )

    @property
    def num_places(self) -> int:
        """Keys and values that are gathered at once."""
        return self.num_rows * max(self.num_columns, self.num_crossed)


class StepInputs:
    """All that differs between steps of one shape."""

    def __init__(self, shape: StepShape, page_pool: PagePool) -> None:
        device = page_pool.shape.device
        self.page_pool = page_pool
        self.told = torch.zeros((4, shape.num_rows), dtype=torch.int64, device=device)
        self.columns = self.told.new_zeros((shape.num_rows, shape.num_columns))
        self.crossed_columns = self.told.new_zeros((shape.num_rows, shape.num_crossed))
        # Copied from pinned memory, a step's numbers travel while the host goes on.
        is_cuda = device.type == "cuda"
        self.staged = torch.zeros((4, shape.num_rows), dtype=torch.int64, pin_memory=is_cuda)
        self.was_copied = torch.cuda.Event() if is_cuda else None

    @property
    def has_encoder(self) -> bool:
        return self.crossed_columns.shape[1] > 0

    def tell(self, slots: list[PagedSequenceCache], tokens: list[int]) -> None:
        """tokens: the newest of each row, which is read"""
        if self.was_copied is not None:
            # Long ago, but for a step that failed before anything was read back.
            self.was_copied.synchronize()
        told = self.staged.numpy()
        # Rows that nobody has look at the scratch column, and are written there.
        told[:] = [[self.page_pool.max_rows], [0], [1], [0]]
        told[TOKEN, : len(tokens)] = tokens
        at = 0
        for slot in slots:
            mine = slice(at, at + slot.num_rows)
            told[ROW, mine] = slot.rows
            told[LENGTH, mine] = slot.length
            told[CROSSED, mine] = slot.num_crossed
            at = mine.stop
        self.told.copy_(self.staged, non_blocking=True)
        if self.was_copied is not None:
            self.was_copied.record()
        for table, mine_of in (
            (self.page_pool.own, self.columns),
            (self.page_pool.crossed, self.crossed_columns),
        ):
            width = mine_of.shape[1]
            table.make_width(width)
            torch.index_select(table.columns[:, :width], 0, self.told[ROW], out=mine_of)


class StaticStep:
    def __init__(
        self,
        page_pool: PagePool,
        forward: Callable[[StepInputs], Tensor],
        graphs: GraphCache[StepShape, None],
        max_places: int = MAX_PLACES,
    ) -> None:
        """forward: returns (rows, vocab) logits, and asks for no number of its inputs"""
        self.page_pool = page_pool
        self.forward = forward
        self.graphs = graphs
        self.max_places = max_places
        self.inputs: dict[StepShape, StepInputs] = {}
        self.logits: Tensor | None = None  # (most rows, vocab), for all shapes

    def run(self, slots: list[Any], tokens: list[int]) -> Tensor:
        """slots: of the page_pool; returns (rows, vocab) logits, good until the next step."""
        parts = parts_within(slots, self.max_places)
        if len(parts) == 1:
            return self._run_part(slots, tokens)
        firsts = list(accumulate((each.num_rows for each in slots), initial=0))
        logits: Tensor | None = None
        for part in parts:
            rows = [row for at in part for row in range(firsts[at], firsts[at + 1])]
            some = self._run_part([slots[at] for at in part], [tokens[row] for row in rows])
            if logits is None:
                logits = some.new_empty(len(tokens), some.shape[1])
            logits[torch.tensor(rows, device=some.device)] = some
        assert logits is not None
        return logits

    def _run_part(self, slots: list[PagedSequenceCache], tokens: list[int]) -> Tensor:
        shape = StepShape.of(slots)
        if shape not in self.inputs:
            self.inputs[shape] = StepInputs(shape, self.page_pool)
        inputs = self.inputs[shape]
        inputs.tell(slots, tokens)
        if self.logits is None:
            logits = self.forward(inputs)
            self.logits = logits.new_empty(power_of_two(self.page_pool.max_rows), logits.shape[1])
        # It may be run twice: what it writes is the same each time.
        self.graphs.run(shape, lambda: self._compute(inputs))
        return self.logits[: len(tokens)]

    def _compute(self, inputs: StepInputs) -> None:
        assert self.logits is not None
        logits = self.forward(inputs)
        self.logits[: len(logits)] = logits


def parts_within(slots: list[PagedSequenceCache], max_places: int) -> list[list[int]]:
    """The numbers of slots that share a step: all of them, or those of like length."""
    everyone = list(range(len(slots)))
    if StepShape.of(slots).num_places <= max_places:
        return [everyone]
    everyone.sort(key=lambda at: max(slots[at].length, slots[at].num_crossed))
    parts: list[list[int]] = [[]]
    for at in reversed(everyone):
        part = [*parts[-1], at]
        if parts[-1] and StepShape.of([slots[each] for each in part]).num_places > max_places:
            parts.append([at])
        else:
            parts[-1] = part
    return parts


def power_of_two(number: int) -> int:
    """The smallest that is not below."""
    return 1 << (number - 1).bit_length()


def in_pages(num_tokens: int) -> int:
    """The smallest number that is not below and a power of two of pages; none for none."""
    if num_tokens == 0:
        return 0
    return PAGE_TOKENS * power_of_two(-(-num_tokens // PAGE_TOKENS))
