from hypothesis import given
from hypothesis import strategies as st

from worker.retry_policy import MAX_DELAY_SECONDS, delay_seconds

FAILURES = st.integers(1, 500)
BASES = st.floats(0.001, 1000)
CHANCES = st.floats(0, 1, exclude_max=True)


@given(FAILURES, BASES, CHANCES)
def test_a_wait_is_between_half_of_the_full_one_and_all_of_it(
    num_failures: int, base: float, chance: float
) -> None:
    full = min(MAX_DELAY_SECONDS, base * 2.0 ** (num_failures - 1))
    assert full / 2 <= delay_seconds(num_failures, base, chance) <= full <= MAX_DELAY_SECONDS


@given(FAILURES, BASES, CHANCES)
def test_no_failure_makes_the_next_wait_shorter(
    num_failures: int, base: float, chance: float
) -> None:
    assert delay_seconds(num_failures, base, chance) <= delay_seconds(
        num_failures + 1, base, chance
    )


def test_the_wait_doubles() -> None:
    assert [delay_seconds(n, 5.0, 0.5) for n in (1, 2, 3)] == [3.75, 7.5, 15.0]
