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
from engine.protocol.messages import Choice, Output, Request, RequestFailure

log = logging.getLogger(__name__)


class Cancelled(Exception):
    """The request that is being tokenized was cancelled."""


class TokenizerThread(Thread):
    """Puts the sequence of each request into the inbox, or its failure, or the measurement that it
    asks for, into the outbox.

    While a long bulk text is tokenized, a slice at a time, interactive requests are served
    between the slices; so the longest that one of them waits is a slice, or a text that is
    within the model's limits.
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
        """Serve the interactive requests that have come in."""
        while (request := self.requests.get_interactive()) is not None:
            self.encode(request)

    def stop_if_cancelled(self, request: Request) -> None:
        """Raises Cancelled."""
        if self.tracker.is_cancelled(request.id):
            raise Cancelled

    def refuse(self, request: Request, error: RequestError) -> None:
        self.outbox.refuse(Output(request_id=request.id, failure=RequestFailure.of(error)))
