"""How soon a line that was just filled needs more, told by what went since the last time."""

import math

import pytest

from worker.dispatcher.dispatcher import BUSY_SECONDS
from worker.dispatcher.queue_target import Room, seconds_until_needed


def test_as_many_may_be_out_as_the_workers_want_at_hand_and_once_more() -> None:
    room = Room(num_wanted=64, num_out=100)
    assert (room.max_out, room.num_free) == (128, 28)


@pytest.mark.parametrize(
    ("num_published", "filled_seconds", "seconds"),
    [
        (16, 0.5, 1.0),  # 32 a second, and 32 are half
        (64, 2.0, 1.0),
        (64, 0.1, 0.05),
        (1, 0.5, 1.0),  # one look knows no more than that
        (0, 0.5, 1.0),
    ],
)
def test_more_is_needed_when_half_of_the_line_is_gone_at_the_same_pace(
    num_published: int, filled_seconds: float, seconds: float
) -> None:
    room = Room(num_wanted=64, num_out=128 - num_published)
    assert room.seconds_until_needed(num_published, filled_seconds) == seconds


def test_of_a_line_that_was_gone_nobody_knows_since_when() -> None:
    assert Room(num_wanted=64, num_out=64).seconds_until_needed(64, 0.5) == 0.25
    assert Room(num_wanted=64, num_out=63).seconds_until_needed(65, 0.5) == 0


def test_a_line_for_which_there_is_nothing_needs_nothing() -> None:
    assert Room(num_wanted=64, num_out=63).seconds_until_needed(0, 0.5) == math.inf


def test_the_model_with_the_most_urgent_line_says_when() -> None:
    rooms = {
        "slow": Room(num_wanted=64, num_out=112),
        "quick": Room(num_wanted=64, num_out=80),
        "idle": Room(num_wanted=64, num_out=0),
        "not loaded": Room(num_wanted=0, num_out=0),
    }
    wait_seconds = seconds_until_needed(rooms, {"slow": 16, "quick": 48}, 0.3)
    assert wait_seconds == pytest.approx(0.2)


def test_without_a_model_there_is_no_hurry() -> None:
    assert seconds_until_needed({}, {}, 0.5) == math.inf


@pytest.mark.parametrize("jobs_per_second", [30, 1000, 5000, 20_000])
def test_an_engine_of_any_pace_is_kept_busy(jobs_per_second: int) -> None:
    """Looks with the wait that is told, and what was free published at each."""
    num_wanted, now, filled_at, num_out = 2048, 0.0, -0.5, 0.0
    num_looks = 0
    while now < 30:
        room = Room(num_wanted, round(num_out))
        wait_seconds = room.seconds_until_needed(room.num_free, now - filled_at)
        num_looks += 1
        filled_at, num_out = now, room.max_out
        now += max(BUSY_SECONDS, min(wait_seconds, 0.5))
        num_out = max(0.0, num_out - jobs_per_second * (now - filled_at))
        assert num_out > 0, f"nothing left to do at {now} s"
    assert num_looks <= 30 / 0.5 + 30 * jobs_per_second / (num_wanted / 2) * 1.1 + 5
