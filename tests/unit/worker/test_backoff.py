"""Waits between retries grow to a limit, however often an operation fails."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.backoff import backoff_seconds

FAILURES = st.integers(1, 100_000)
BASES = st.floats(0.001, 1000)
CHANCES = st.floats(0, 1)
MAX_SECONDS = 600.0


@given(FAILURES, BASES, CHANCES)
def test_a_wait_lies_between_half_of_the_full_one_and_all_of_it(
    num_failures: int, base: float, chance: float
) -> None:
    full = backoff_seconds(num_failures, base, MAX_SECONDS)
    assert full / 2 <= backoff_seconds(num_failures, base, MAX_SECONDS, chance) <= full


@given(FAILURES, BASES, CHANCES)
def test_no_failure_makes_the_next_wait_shorter_and_none_is_longer_than_the_maximum(
    num_failures: int, base: float, chance: float
) -> None:
    waits = [
        backoff_seconds(number, base, MAX_SECONDS, chance)
        for number in (num_failures, num_failures + 1)
    ]
    assert waits == sorted(waits)
    assert waits[-1] <= MAX_SECONDS


@pytest.mark.parametrize(
    ("chance", "waits"), [(0.5, [3.75, 7.5, 15.0, 24.0]), (1.0, [5.0, 10.0, 20.0, 32.0])]
)
def test_the_wait_doubles_up_to_the_maximum(chance: float, waits: list[float]) -> None:
    assert [backoff_seconds(n, 5.0, 32.0, chance) for n in (1, 2, 3, 4)] == waits
