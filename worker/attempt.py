"""One attempt of one job: drives its recipe until there is an outcome."""

import logging
import random
import threading
import time
from collections.abc import Callable

from db.outcome import Fence, Outcome
from engine.protocol.messages import Output, Request
from worker.engine_client import EngineClient
from worker.errors import JobError, RecipeFailed, RequestFailed, TimeLimitPassed
from worker.failpoints import passing
from worker.recipes import RECIPES, Fallible, Steps, Work
from worker.retry_policy import delay_seconds
from worker.settings import Settings

log = logging.getLogger(__name__)


class Attempt:
    """Runs a claimed job on an engine; calls `on_outcome` exactly once.

    Its recipe is advanced by one thread at a time: first the claimer's, then
    the engine's reader. `release` and `abandon` may come from any thread.
    """

    def __init__(
        self,
        fence: Fence,
        work: Work,
        num_failures: int,
        client: EngineClient,
        settings: Settings,
        time_limit_seconds: float | None,
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        self.fence = fence
        self._work = work
        self._num_failures = num_failures
        self._client = client
        self._settings = settings
        self._on_outcome = on_outcome
        self._time_limit_seconds = time_limit_seconds
        self._started_at = time.monotonic()
        self._lock = threading.Lock()
        self._over = False
        self._steps: Steps | None = None  # until it starts
        self._wanted: tuple[Request, ...] = ()
        self._outputs: dict[int, Output] = {}

    @property
    def is_over(self) -> bool:
        """Whether it has its outcome, be it written or not."""
        return self._over

    def start(self) -> None:
        self._advance(None)

    def release(self) -> None:
        """Give the job back unfinished, without blame."""
        self._end(Outcome.released(self.fence))

    def abandon(self) -> None:
        """Stop: the job was cancelled or is another's now. The fence voids the outcome."""
        self._end(Outcome.released(self.fence))

    def fail_if_overdue(self, now: float) -> None:
        """End an attempt that ran longer than its job allows; now is monotonic."""
        limit = self._time_limit_seconds
        if limit is not None and now - self._started_at > limit:
            self._fail(TimeLimitPassed(limit))

    def _receive(self, output: Output) -> None:
        if self._over:
            return
        passing("generated")
        self._outputs[output.request_id] = output
        if len(self._outputs) == len(self._wanted):
            outputs = tuple(self._outputs[request.id] for request in self._wanted)
            self._outputs = {}
            self._advance(outputs)

    def _advance(self, outputs: tuple[Output, ...] | None) -> None:
        try:
            if outputs is not None and not isinstance(self._wanted, Fallible):
                _require_answers(outputs)
            if self._steps is None:
                self._steps = RECIPES[self._work.task](self._work)
            self._wanted = next(self._steps) if outputs is None else self._steps.send(outputs)
        except StopIteration as finished:
            self._end(Outcome.succeeded(self.fence, finished.value))
        except JobError as error:
            self._fail(error)
        except Exception as error:
            log.exception("recipe failed", extra={"job_id": str(self.fence.job_id)})
            self._fail(RecipeFailed(error))
        else:
            self._client.submit(self._wanted, self._receive)
            passing("requested")

    def _fail(self, error: JobError) -> None:
        num_failures = self._num_failures + 1
        if error.retryable and num_failures < self._settings.max_failures:
            delay = delay_seconds(num_failures, self._settings.retry_seconds, random.random())
            self._end(Outcome.retried(self.fence, error.code, str(error), delay))
        else:
            self._end(Outcome.failed(self.fence, error.code, str(error)))

    def _end(self, outcome: Outcome) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
        self._client.cancel([request.id for request in self._wanted])
        self._on_outcome(outcome)


def _require_answers(outputs: tuple[Output, ...]) -> None:
    for output in outputs:
        if output.failure is not None:
            raise RequestFailed(output.failure)
