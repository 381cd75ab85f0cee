"""Bisection finds the items at fault, and does every other item once."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.bisection import halves, run_in_halves


class Refused(Exception):
    pass


@given(st.integers(1, 40), st.sets(st.integers(0, 39)))
def test_every_item_is_done_once_but_those_at_fault(num_items: int, faulty: set[int]) -> None:
    done: list[int] = []
    refused: list[int] = []

    def run(items: Sequence[int]) -> None:
        if faulty & set(items):
            raise Refused
        done.extend(items)

    run_in_halves(
        range(num_items),
        run,
        lambda error: isinstance(error, Refused),
        lambda item, error: refused.append(item),
    )
    assert done == [item for item in range(num_items) if item not in faulty]
    assert refused == sorted(faulty & set(range(num_items)))


def test_one_fault_among_a_thousand_costs_few_runs() -> None:
    num_runs = 0

    def run(items: Sequence[int]) -> None:
        nonlocal num_runs
        num_runs += 1
        if 700 in items:
            raise Refused

    run_in_halves(range(1000), run, lambda error: True, lambda item, error: None)
    assert num_runs <= 21


def test_an_error_that_is_no_refusal_is_raised_and_nothing_is_run_again() -> None:
    runs: list[int] = []

    def run(items: Sequence[int]) -> None:
        runs.append(len(items))
        raise ConnectionError

    with pytest.raises(ConnectionError):
        run_in_halves([1, 2, 3], run, lambda error: False, lambda item, error: None)
    assert runs == [3]


def test_no_half_is_empty() -> None:
    assert halves([1, 2, 3]) == [[1, 2], [3]]
    assert halves([1]) == [[1]]
    assert halves([]) == []
