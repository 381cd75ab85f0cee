from threading import Thread

import pytest

from engine.core.request_tracker import Ledger
from engine.errors import InvariantBroken


def test_what_was_answered_cannot_be_cancelled():
    ledger = Ledger(max_held=9)
    ledger.open([1, 2])
    ledger.close([1])
    ledger.cancel([1, 2, 3])
    assert ledger.cancelled == {2}
    assert ledger.is_cancelled(2)
    ledger.close([2])
    assert ledger.cancelled == frozenset()
    ledger.check()


def test_room_is_what_is_not_held():
    ledger = Ledger(max_held=2)
    ledger.open([1])
    assert ledger.wait_for_room(0)
    ledger.open([2])
    assert not ledger.wait_for_room(0)
    found = []
    waiting = Thread(target=lambda: found.append(ledger.wait_for_room(60)))
    waiting.start()
    ledger.close([1])
    waiting.join(60)
    assert found == [True]


def test_books_that_do_not_agree_are_noticed():
    ledger = Ledger(max_held=2)
    ledger._cancelled.add(5)
    with pytest.raises(InvariantBroken, match="5"):
        ledger.check()
