"""How soon a queue must be refilled, from the number of messages taken since the last time."""

import math

import pytest

from worker.dispatcher.dispatcher import BUSY_SECONDS
from worker.dispatcher.queue_target import QueueTarget, seconds_until_needed


def test_the_target_is_twice_what_the_workers_want_at_hand() -> None:
    target = QueueTarget(num_wanted=64, num_out=100)
    assert (target.max_out, target.num_missing) == (128, 28)


@pytest.mark.parametrize(
    ("num_published", "filled_seconds", "seconds"),
    [
        (16, 0.5, 1.0),  # 32 a second, and 32 are half
        (64, 2.0, 1.0),
        (64, 0.1, 0.05),
        (1, 0.5, 1.0),  # one poll cannot tell more
        (0, 0.5, 1.0),
    ],
)
def test_more_is_needed_when_half_of_the_queue_is_gone_at_the_same_pace(
    num_published: int, filled_seconds: float, seconds: float
) -> None:
    target = QueueTarget(num_wanted=64, num_out=128 - num_published)
    assert target.seconds_until_needed(num_published, filled_seconds) == seconds


def test_wait_is_zero_when_the_queue_drained_before_the_refill() -> None:
    assert QueueTarget(num_wanted=64, num_out=64).seconds_until_needed(64, 0.5) == 0.25
    assert QueueTarget(num_wanted=64, num_out=63).seconds_until_needed(65, 0.5) == 0


def test_a_queue_with_no_jobs_due_needs_nothing() -> None:
    assert QueueTarget(num_wanted=64, num_out=63).seconds_until_needed(0, 0.5) == math.inf


def test_the_most_urgent_model_decides_the_wait() -> None:
    targets = {
        "slow": QueueTarget(num_wanted=64, num_out=112),
        "quick": QueueTarget(num_wanted=64, num_out=80),
        "idle": QueueTarget(num_wanted=64, num_out=0),
        "not loaded": QueueTarget(num_wanted=0, num_out=0),
    }
    wait_seconds = seconds_until_needed(targets, {"slow": 16, "quick": 48}, 0.3)
    assert wait_seconds == pytest.approx(0.2)


def test_the_wait_is_infinite_without_models() -> None:
    assert seconds_until_needed({}, {}, 0.5) == math.inf


@pytest.mark.parametrize("jobs_per_second", [30, 1000, 5000, 20_000])
def test_an_engine_of_any_pace_is_kept_busy(jobs_per_second: int) -> None:
    """Polls at the returned interval, and publishes the missing jobs each time."""
    num_wanted, now, filled_at, num_out = 2048, 0.0, -0.5, 0.0
    num_polls = 0
    while now < 30:
        target = QueueTarget(num_wanted, round(num_out))
        wait_seconds = target.seconds_until_needed(target.num_missing, now - filled_at)
        num_polls += 1
        filled_at, num_out = now, target.max_out
        now += max(BUSY_SECONDS, min(wait_seconds, 0.5))
        num_out = max(0.0, num_out - jobs_per_second * (now - filled_at))
        assert num_out > 0, f"nothing left to do at {now} s"
    assert num_polls <= 30 / 0.5 + 30 * jobs_per_second / (num_wanted / 2) * 1.1 + 5
