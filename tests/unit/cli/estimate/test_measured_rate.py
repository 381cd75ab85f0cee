"""The time that work took is the time in which any of it ran, not the sum over parallel jobs."""

from datetime import UTC, datetime, timedelta

import pytest

from cli.estimate.measured_rate import busy_seconds
from cli.estimate.sentences import in_words

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("runs", "seconds"),
    [
        ([], 0.0),
        ([(0, 10)], 10.0),
        ([(0, 10), (0, 10), (2, 8)], 10.0),
        ([(0, 10), (5, 15)], 15.0),
        ([(100, 110), (0, 10)], 20.0),
        ([(0, 10), (10, 20), (30, 30)], 20.0),
    ],
)
def test_jobs_side_by_side_count_once_and_pauses_do_not(
    runs: list[tuple[int, int]], seconds: float
) -> None:
    instants = [(NOON + timedelta(seconds=a), NOON + timedelta(seconds=b)) for a, b in runs]
    assert busy_seconds(instants) == seconds


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "1 s"), (42.4, "42 s"), (100, "2 min"), (3000, "50 min"), (36_060, "10 h 1 min")],
)
def test_a_time_is_said_no_finer_than_it_is_known(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
