"""Writer: the thread that detokenizes completions and sends outputs to the parent."""

from __future__ import annotations

import logging
import os
from multiprocessing.connection import Connection
from threading import Thread

from engine.core.backend import Backend
from engine.core.completion import Completion
from engine.core.request_tracker import RequestTracker
from engine.core.threads.outbox import Outbox
from engine.errors import GenerationFailed, RequestError
from engine.logging import error_location
from engine.protocol.messages import Outputs, to_bytes
from engine.protocol.output import Output, RequestFailure

log = logging.getLogger(__name__)


class Writer(Thread):
    """Sends at most one frame a step; if the pipe is slow, several steps in one frame.

    A frame without outputs tells the parent that the loop is alive.
    """

    def __init__(
        self, pipe: Connection, engine: Backend, tracker: RequestTracker, outbox: Outbox
    ) -> None:
        super().__init__(name="writer", daemon=True)
        self.pipe = pipe
        self.engine = engine
        self.tracker = tracker
        self.outbox = outbox

    def run(self) -> None:
        while True:
            completions = self.outbox.take()
            if completions is None:
                return
            waiting, progress = completions
            outputs = tuple(self.output(each) for each in waiting)
            # Closed before they are sent: a parent that has an output may rely on its freed place.
            self.tracker.close(each.request_id for each in outputs)
            try:
                self.pipe.send_bytes(to_bytes(Outputs(outputs, progress)))
            except OSError:
                os._exit(0)  # the parent died

    def output(self, waiting: Completion | Output) -> Output:
        if isinstance(waiting, Output):
            return waiting
        if waiting.error is not None:
            return self.failure(waiting, waiting.error)
        try:
            return self.engine.decode(waiting)
        except Exception as error:
            log.error("decoding failed", extra={"error": error_location(error)})
            return self.failure(waiting, GenerationFailed(error, "writing the answer as text"))

    def failure(self, completion: Completion, error: RequestError) -> Output:
        return Output(
            request_id=completion.sequence.id,
            prompt_tokens=len(completion.sequence.prompt_ids),
            settings=completion.sequence.settings.to_json(),
            failure=RequestFailure.of(error),
        )
