"""Reader: the thread that reads frames from the pipe and queues their requests."""

from __future__ import annotations

import logging
import os
import select
from multiprocessing.connection import Connection
from threading import Thread

from engine.core.request_tracker import RequestTracker
from engine.core.threads.inbox import Inbox
from engine.core.threads.request_queue import RequestQueue
from engine.protocol.messages import Cancel, Run, Stop, from_bytes

log = logging.getLogger(__name__)

HANGUP_CHECK_SECONDS = 1.0  # how late a parent's death may be noticed while the tracker is full


class Reader(Thread):
    """Reads until the parent sends Stop or dies.

    After the parent's death no output can be sent, so the process ends at once, even in a step.
    """

    def __init__(
        self, pipe: Connection, tracker: RequestTracker, requests: RequestQueue, inbox: Inbox
    ) -> None:
        super().__init__(name="reader", daemon=True)
        self.pipe = pipe
        self.tracker = tracker
        self.requests = requests
        self.inbox = inbox

    def run(self) -> None:
        try:
            while not self.inbox.closed:
                self.read()
        except (EOFError, OSError):
            os._exit(0)
        except BaseException as error:
            # A frame that does not parse is a mistake of ours. Ending is what the parent
            # can act on; a process that no longer reads is not.
            log.critical("pipe unreadable", extra={"error": type(error).__name__})
            os._exit(70)

    def read(self) -> None:
        """Wait for one frame and handle it; raises EOFError or OSError when the parent died."""
        match from_bytes(self.pipe.recv_bytes()):
            case Run(requests):
                self.tracker.open(each.id for each in requests)
                for request in requests:
                    self.requests.put(request)
                self.wait_for_capacity()
            case Cancel(ids):
                self.tracker.cancel(ids)
            case Stop():
                self.inbox.close()
            case frame:
                raise AssertionError(f"the parent sent {type(frame).__name__}")

    def wait_for_capacity(self) -> None:
        """Block while `max_held` requests are held, so that further frames stay in the pipe."""
        while not self.tracker.wait_for_capacity(HANGUP_CHECK_SECONDS):
            if hung_up(self.pipe):
                raise EOFError


def hung_up(pipe: Connection) -> bool:
    """Whether the other end of the pipe is closed. Reads nothing from it."""
    poll = select.poll()
    poll.register(pipe.fileno(), 0)  # a hang-up is always reported
    return bool(poll.poll(0))
