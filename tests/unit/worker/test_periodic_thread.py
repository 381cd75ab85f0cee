"""A ticker goes on whatever its ticks come to."""

import threading
from collections.abc import Callable, Iterator

import pytest

from worker.periodic_thread import AFTER_ERROR_SECONDS, Ticker


class Waits:
    """Stands in for a ticker's waiting: takes no time, and stops after so many."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return len(self.seconds) <= self.number


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
    ticker._wait = waits  # type: ignore[method-assign]
    ticker._run()
    assert waits.seconds == [seconds, seconds, AFTER_ERROR_SECONDS, AFTER_ERROR_SECONDS, 0.05]


class Changes:
    """Stands in for the condition of a ticker: no time passes, what it waits for is asked once."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def notify_all(self) -> None: ...

    def wait_for(self, happened: Callable[[], bool], seconds: float) -> bool:
        if not (it := happened()):
            self.seconds.append(seconds)
        return it


def test_who_wakes_a_ticker_ends_its_wait_but_not_its_rest() -> None:
    ticker = Ticker("dispatcher", 60.0, lambda: None, rest_seconds=0.25)
    ticker._changed = changes = Changes()  # type: ignore[assignment]
    assert ticker._wait(60.0)
    assert changes.seconds == [0.25, 59.75]
    for _ in range(10):
        ticker.wake()
    assert ticker._wait(60.0)
    assert ticker._wait(60.0)
    assert changes.seconds[2:] == [0.25, 0.25, 59.75], "ten calls are one"


def test_however_many_wake_a_ticker_that_ticks_it_ticks_once_more() -> None:
    began: list[threading.Event] = [threading.Event() for _ in range(3)]
    go_on = threading.Event()
    num_ticks = 0

    def tick() -> None:
        nonlocal num_ticks
        num_ticks += 1
        began[num_ticks - 1].set()
        go_on.wait(60)

    ticker = Ticker("dispatcher", 3600.0, tick)
    ticker.start()
    ticker.wake()
    assert began[0].wait(60)
    for _ in range(100):
        ticker.wake()
    go_on.set()
    assert began[1].wait(60)
    ticker.stop()
    assert num_ticks == 2
