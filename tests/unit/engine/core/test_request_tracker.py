from threading import Thread

import pytest

from engine.core.request_tracker import RequestTracker
from engine.errors import InvariantBroken


def test_an_answered_request_cannot_be_cancelled():
    tracker = RequestTracker(max_held=9)
    tracker.open([1, 2])
    tracker.close([1])
    tracker.cancel([1, 2, 3])
    assert tracker.cancelled == {2}
    assert tracker.is_cancelled(2)
    tracker.close([2])
    assert tracker.cancelled == frozenset()
    tracker.check()


def test_a_full_tracker_waits_for_capacity_until_a_request_is_closed():
    tracker = RequestTracker(max_held=2)
    tracker.open([1])
    assert tracker.wait_for_capacity(0)
    tracker.open([2])
    assert not tracker.wait_for_capacity(0)
    found = []
    waiting = Thread(target=lambda: found.append(tracker.wait_for_capacity(60)))
    waiting.start()
    tracker.close([1])
    waiting.join(60)
    assert found == [True]


def test_check_raises_when_a_cancelled_request_is_not_held():
    tracker = RequestTracker(max_held=2)
    tracker._cancelled.add(5)
    with pytest.raises(InvariantBroken, match="5"):
        tracker.check()
