"""A ticker goes on whatever its ticks come to."""

from collections.abc import Iterator

import pytest

from worker.ticker import AFTER_ERROR_SECONDS, Ticker


class Waits:
    """Stands in for the event that stops a ticker: takes no time, and stops after so many."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.seconds: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return len(self.seconds) > self.number


@pytest.mark.parametrize("seconds", [0.2, 15.0])
def test_a_tick_that_failed_is_tried_again_soon_however_seldom_it_is_done(seconds: float) -> None:
    outcomes: Iterator[Exception | float | None] = iter([None, ValueError(), ValueError(), 0.05])

    def tick() -> float | None:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    waits = Waits(4)
    ticker = Ticker("leases", seconds, tick)
    ticker._stopping = waits  # type: ignore[assignment]
    ticker._run()
    assert waits.seconds == [seconds, seconds, AFTER_ERROR_SECONDS, AFTER_ERROR_SECONDS, 0.05]
