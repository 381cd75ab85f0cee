"""Bisection: runs many items at once, and isolates those that make it fail."""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def halves(items: Sequence[T]) -> list[Sequence[T]]:
    """The first and the second half of the items, without an empty one."""
    middle = (len(items) + 1) // 2
    return [half for half in (items[:middle], items[middle:]) if half]


def run_in_halves(
    items: Sequence[T],
    run: Callable[[Sequence[T]], None],
    is_refusal: Callable[[Exception], bool],
    on_refused: Callable[[T, Exception], None],
) -> None:
    """Run all items at once. If they are refused, run each half, down to the refused items.

    run:        processes all of these items or none
    is_refusal: whether an error is the fault of an item; others are raised
    on_refused: called with each item that is refused alone, and its error
    """
    try:
        run(items)
    except Exception as error:
        if not is_refusal(error):
            raise
        if len(items) == 1:
            on_refused(items[0], error)
            return
        for half in halves(items):
            run_in_halves(half, run, is_refusal, on_refused)
