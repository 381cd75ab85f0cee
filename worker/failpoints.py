"""Failpoints: moments in the life of a job at which a test can kill this process.

`TIDEMILL_FAIL_AT=committed` kills the process the first time it passes that moment, `committed:5`
the fifth. Unset, as always outside of tests, passing costs one comparison.
"""

import os
import signal
import threading
from typing import Literal, get_args

Moment = Literal[
    "delivered",  # a message is here, nothing is claimed
    "claimed",  # its jobs are ours, nothing runs yet
    "requested",  # the engine has the requests
    "stepped",  # the engine is done with some, and works on others
    "generated",  # the engine has answered
    "kept",  # finished parts are committed, their job goes on
    "committing",  # the outcomes are written, not committed
    "committed",  # committed, not acked
    "acked",
    "published",  # by the dispatcher, and not yet marked as such
    "leading",  # leadership was taken, nothing is published
]

_name, _, _count = os.environ.get("TIDEMILL_FAIL_AT", "").partition(":")
_armed: str | None = _name or None
assert _armed is None or _armed in get_args(Moment), f"no such moment: {_armed}"
_left = int(_count or 1)
_lock = threading.Lock()


def passing(moment: Moment) -> None:
    if _armed != moment:
        return
    global _left
    with _lock:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
