"""TokenizerThread: the thread that turns queued requests into sequences."""

from __future__ import annotations

import logging
from threading import Thread

from engine.core.backend import Backend
from engine.core.request_tracker import RequestTracker
from engine.core.scheduler import StepLimits
from engine.core.threads.inbox import Inbox
from engine.core.threads.outbox import Outbox
from engine.core.threads.request_queue import RequestQueue
from engine.errors import GenerationFailed, RequestError
from engine.logging import error_location
from engine.protocol.output import Choice, Output, RequestFailure
from engine.protocol.request import Request

log = logging.getLogger(__name__)


class Cancelled(Exception):
    """The request was cancelled while it was being tokenized."""


class TokenizerThread(Thread):
    """Tokenizes requests: sequences go to the inbox, failures and measurements to the outbox.

    A long bulk text is tokenized in slices, and interactive requests are served between them. So an
    interactive request waits at most for one slice, or for one text within the model's limits.
    """

    def __init__(
        self,
        engine: Backend,
        limits: StepLimits,
        tracker: RequestTracker,
        requests: RequestQueue,
        inbox: Inbox,
        outbox: Outbox,
    ) -> None:
        super().__init__(name="tokenizer", daemon=True)
        self.engine = engine
        self.limits = limits
        self.tracker = tracker
        self.requests = requests
        self.inbox = inbox
        self.outbox = outbox

    def run(self) -> None:
        while True:
            self.encode(self.requests.get())

    def encode(self, request: Request) -> None:
        """Put the request's sequence into the inbox, or its output into the outbox."""

        def between_slices() -> None:
            if not request.is_interactive:
                self.encode_interactive()
            self.stop_if_cancelled(request)

        try:
            self.stop_if_cancelled(request)
            if request.is_measured:
                measurement = self.engine.measure(request, between_slices)
                self.outbox.refuse(Output(request_id=request.id, measurement=measurement))
                return
            sequence = self.engine.encode(request, between_slices)
            self.limits.refuse_misfit(sequence)
        except Cancelled:
            choice = Choice("", "cancelled", 0, ())
            self.outbox.refuse(Output(request_id=request.id, choices=(choice,)))
        except RequestError as error:
            self.refuse(request, error)
        except Exception as error:
            log.error("encoding failed", extra={"error": error_location(error)})
            self.refuse(request, GenerationFailed(error, "encoding the prompt"))
        else:
            self.inbox.put(sequence)

    def encode_interactive(self) -> None:
        """Tokenize the interactive requests that have arrived."""
        while (request := self.requests.get_interactive()) is not None:
            self.encode(request)

    def stop_if_cancelled(self, request: Request) -> None:
        """Raise Cancelled if the request was cancelled."""
        if self.tracker.is_cancelled(request.id):
            raise Cancelled

    def refuse(self, request: Request, error: RequestError) -> None:
        self.outbox.refuse(Output(request_id=request.id, failure=RequestFailure.of(error)))
