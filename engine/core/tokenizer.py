"""TokenizerThread: requests to sequences, off the loop."""

from __future__ import annotations

import logging
from threading import Thread

from engine.core.backend import Engine
from engine.core.inbox import Inbox
from engine.core.outbox import Outbox
from engine.core.request_queue import Requests
from engine.core.request_tracker import RequestTracker
from engine.core.scheduler import StepLimits
from engine.errors import GenerationFailed, RequestError
from engine.logging import error_location
from engine.protocol.messages import Choice, Output, Request, RequestFailure

log = logging.getLogger(__name__)


class TokenizerThread(Thread):
    """A request becomes a sequence in the inbox, or is answered here: with its failure, or
    with the measurement that it asks for."""

    def __init__(
        self,
        engine: Engine,
        limits: StepLimits,
        tracker: RequestTracker,
        requests: Requests,
        inbox: Inbox,
        outbox: Outbox,
    ) -> None:
        super().__init__(name="encoder", daemon=True)
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
        if self.tracker.is_cancelled(request.id):
            choice = Choice("", "cancelled", 0, ())
            self.outbox.refuse(Output(request_id=request.id, choices=(choice,)))
            return
        try:
            if request.measured_texts:
                measurement = self.engine.measure(request)
                self.outbox.refuse(Output(request_id=request.id, measurement=measurement))
                return
            sequence = self.engine.encode(request)
            self.limits.refuse_misfit(sequence)
        except RequestError as error:
            self.refuse(request, error)
        except Exception as error:
            log.error("encoding failed", extra={"error": error_location(error)})
            self.refuse(request, GenerationFailed(error, "encoding the prompt"))
        else:
            self.inbox.put(sequence)

    def refuse(self, request: Request, error: RequestError) -> None:
        self.outbox.refuse(Output(request_id=request.id, failure=RequestFailure.of(error)))
