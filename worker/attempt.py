"""One attempt of one job: drives its recipe until there is an outcome."""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from db.outcome import Answer, Fence, FinishedSegment, Outcome
from engine.protocol.messages import Output, Request
from worker.backoff import backoff_seconds
from worker.engine_client import EngineClient
from worker.errors import JobError, RecipeFailed, RequestFailed, TimeLimitPassed
from worker.failpoints import passing
from worker.guards.guard import Guard
from worker.job_trace import JobTrace
from worker.recipes import Fallible, Steps, Work, steps_of
from worker.segments import finished_output, segment_of
from worker.settings import Settings

log = logging.getLogger(__name__)

MAX_RETRY_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request on its way, and where its output belongs."""

    request: Request
    index: int  # among those of its step
    position: int  # among all of the attempt


class Attempt:
    """Runs a claimed job on an engine; calls `on_outcome` exactly once.

    Its recipe is advanced by one thread at a time: first the claimer's, then
    the engine's reader. `release` and `abandon` may come from any thread.

    Of a job that is many requests only so many are at the engine at once, and the next
    is made when one comes back: so a long document takes turns with other jobs, and its
    requests are never all in memory. What came back is handed to `on_segment`, and what
    an earlier attempt finished (`segments`) is not asked for again.
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
        on_segment: Callable[[FinishedSegment], None] | None = None,
        segments: Mapping[int, dict[str, Any]] | None = None,
        ids: Mapping[str, str] | None = None,
        guard: Guard | None = None,
        trace: JobTrace | None = None,
    ) -> None:
        """ids: what the log says of the job; trace: its spans, None where nobody wants any"""
        self.fence = fence
        self._work = work
        self._num_failures = num_failures
        self._client = client
        self._settings = settings
        self._on_outcome = on_outcome
        self._on_segment = on_segment
        self._guard = guard
        self._segments = segments or {}
        self._has_segments = bool(segments)
        self._ids = ids or {"job_id": str(fence.job_id)}
        self.trace = trace
        self._time_limit_seconds = time_limit_seconds
        self._started_at = time.monotonic()
        self._lock = threading.Lock()
        self._over = False
        self._steps: Steps | None = None  # until it starts
        self._unasked: Iterator[Request] = iter(())  # of the present step
        self._is_fallible = False  # the recipe takes failed outputs of this step too
        self._num_in_step = 0  # requests of it that were made
        self._position = 0  # of the next request
        self._in_flight: dict[int, _Asked] = {}
        self._outputs: dict[int, Output] = {}  # of the present step, by index

    @property
    def run_seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._started_at

    @property
    def is_over(self) -> bool:
        """Whether it has its outcome, be it written or not."""
        return self._over

    def start(self) -> None:
        self._proceed(self._begin)

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
        asked = self._in_flight.pop(output.request_id, None)
        if asked is None:
            return  # of a step that the recipe has given up
        if self.trace is not None:
            self.trace.answered(output)
        passing("generated")
        if output.failure is not None and not self._is_fallible:
            failure = RequestFailed(output.failure)
            self._proceed(lambda: self._give_up(failure))
        else:
            self._proceed(lambda: self._take(asked, output))

    def _proceed(self, move: Callable[[], None]) -> None:
        """Make a move, and ask for what there is room for after it."""
        try:
            move()
            requests = self._next_requests()
        except StopIteration as finished:
            self._examine(finished.value)
        except JobError as error:
            self._fail(error)
        except Exception as error:
            log.exception("recipe failed", extra=dict(self._ids))
            self._fail(RecipeFailed(error))
        else:
            if requests:
                if self.trace is not None:
                    self.trace.asked(requests)
                self._client.submit(requests, self._receive)
                passing("requested")
                if self._over:  # meanwhile, and its cancellation came before these
                    self._client.cancel([each.id for each in requests])

    def _begin(self) -> None:
        recipe = None if self._guard is None else self._guard.recipe
        self._steps = steps_of(self._work, recipe)
        self._enter(next(self._steps))

    def _examine(self, answer: Answer) -> None:
        if self._guard is None:
            self._conclude(answer)
        else:
            self._guard.examine(self._work, answer, self._conclude)

    def _conclude(self, verdict: Answer | JobError) -> None:
        """On the thread of the last output, or on the guards'."""
        if isinstance(verdict, JobError):
            self._fail(verdict)
        else:
            self._end(Outcome.succeeded(self.fence, verdict, self._has_segments))

    def _enter(self, requests: Iterable[Request]) -> None:
        """Begin a step."""
        self._is_fallible = isinstance(requests, Fallible)
        self._unasked = iter(requests)
        self._outputs = {}
        self._num_in_step = 0
        if self.trace is not None:
            self.trace.part_began()

    def _give_up(self, failure: RequestFailed) -> None:
        """Tell the recipe, which may know another way; the rest of its step is wanted no more."""
        assert self._steps is not None
        self._client.cancel(list(self._in_flight))
        self._in_flight.clear()
        self._enter(self._steps.throw(failure))

    def _take(self, asked: _Asked, output: Output) -> None:
        self._outputs[asked.index] = output
        is_one_of_many = self._position > 1
        if is_one_of_many and self._on_segment is not None and output.choices:
            self._has_segments = True
            segment = segment_of(asked.request, output, self._work.card)
            self._on_segment(FinishedSegment(self.fence, asked.position, segment))

    def _next_requests(self) -> list[Request]:
        """What to ask for now, advancing the recipe past steps that are done.

        Raises StopIteration with the answer.
        """
        assert self._steps is not None
        requests: list[Request] = []
        while True:
            while len(self._in_flight) < self._max_in_flight:
                request = next(self._unasked, None)
                if request is None:
                    break
                asked = _Asked(request, self._num_in_step, self._position)
                self._num_in_step += 1
                self._position += 1
                segment = self._segments.get(asked.position)
                finished = finished_output(segment, request, self._work.card)
                if finished is not None:
                    self._outputs[asked.index] = finished
                else:
                    self._in_flight[request.id] = asked
                    requests.append(request)
            if self._in_flight:
                return requests
            outputs = tuple(self._outputs[index] for index in range(self._num_in_step))
            self._enter(self._steps.send(outputs))

    @property
    def _max_in_flight(self) -> int:
        """Enough to keep the engine busy; few, where somebody waits for other jobs as well."""
        num_rows = self._client.sized.spec.max_sequences or 1
        return max(num_rows // 4, 1) if self._work.is_interactive else 2 * num_rows

    def _fail(self, error: JobError) -> None:
        num_failures = self._num_failures + 1
        if error.retryable and num_failures < self._settings.max_failures:
            delay = backoff_seconds(
                num_failures, self._settings.retry_seconds, MAX_RETRY_SECONDS, random.random()
            )
            self._end(Outcome.retried(self.fence, error.code, str(error), delay))
        else:
            self._end(Outcome.failed(self.fence, error.code, str(error)))

    def _end(self, outcome: Outcome) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
        if self.trace is not None:
            self.trace.ended(outcome)
        self._client.cancel(list(self._in_flight))
        self._on_outcome(outcome)
