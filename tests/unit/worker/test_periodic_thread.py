"""A periodic thread goes on whatever its ticks come to."""

import threading
from collections.abc import Callable, Iterator

import pytest

from worker.periodic_thread import AFTER_ERROR_SECONDS, PeriodicThread


class Waits:
    """Stands in for a periodic thread's waiting: takes no time, and stops after so many."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return len(self.seconds) <= self.number


@pytest.mark.parametrize("seconds", [0.2, 15.0])
def test_a_failed_tick_is_retried_soon_even_if_ticks_are_rare(seconds: float) -> None:
    outcomes: Iterator[Exception | float | None] = iter([None, ValueError(), ValueError(), 0.05])

    def tick() -> float | None:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    waits = Waits(4)
    thread = PeriodicThread("heartbeat", seconds, tick)
    thread._wait = waits  # type: ignore[method-assign]
    thread._run()
    assert waits.seconds == [seconds, seconds, AFTER_ERROR_SECONDS, AFTER_ERROR_SECONDS, 0.05]


class Changes:
    """Stands in for a periodic thread's condition: no time passes, a predicate is read once."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def notify_all(self) -> None: ...

    def wait_for(self, happened: Callable[[], bool], seconds: float) -> bool:
        if not (it := happened()):
            self.seconds.append(seconds)
        return it


def test_waking_ends_a_wait_early_but_not_its_rest() -> None:
    thread = PeriodicThread("dispatcher", 60.0, lambda: None, rest_seconds=0.25)
    thread._changed = changes = Changes()  # type: ignore[assignment]
    assert thread._wait(60.0)
    assert changes.seconds == [0.25, 59.75]
    for _ in range(10):
        thread.wake()
    assert thread._wait(60.0)
    assert thread._wait(60.0)
    assert changes.seconds[2:] == [0.25, 0.25, 59.75], "ten calls are one"


def test_any_number_of_wakes_during_a_tick_cause_one_more_tick() -> None:
    began: list[threading.Event] = [threading.Event() for _ in range(3)]
    go_on = threading.Event()
    num_ticks = 0

    def tick() -> None:
        nonlocal num_ticks
        num_ticks += 1
        began[num_ticks - 1].set()
        go_on.wait(60)

    thread = PeriodicThread("dispatcher", 3600.0, tick)
    thread.start()
    thread.wake()
    assert began[0].wait(60)
    for _ in range(100):
        thread.wake()
    go_on.set()
    assert began[1].wait(60)
    thread.stop()
    assert num_ticks == 2
