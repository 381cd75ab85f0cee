"""One attempt of one job: drives its recipe until there is an outcome."""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from db.outcome import Answer, Fence, FinishedSegment, Outcome
from engine.protocol.messages import Output, Request
from worker.backoff import backoff_seconds
from worker.engine_client import EngineClient
from worker.errors import JobError, RecipeFailed, RequestFailed, TimeLimitPassed, WayTooLong
from worker.failpoints import passing
from worker.guards.guard import Guard
from worker.job_trace import JobTrace
from worker.recipes import Fallible, Steps, Work, steps_of
from worker.segments import finished_output, identity, segment_of
from worker.settings import Settings

log = logging.getLogger(__name__)

MAX_RETRY_SECONDS = 600.0
# Each move is one attempt more, and finishes something; so many mean that nothing is kept.
MAX_ATTEMPTS_ON_THE_WAY = 200


class _Elsewhere(Exception):
    """The recipe needs a model that this worker does not serve, and nothing else."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model


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
        client_of: Callable[[str], EngineClient | None] = lambda alias: None,
    ) -> None:
        """ids: what the log says of the job
        trace: its spans; None where nobody wants any
        client_of: the engine of another model, for a job that goes by way of several
        """
        self.fence = fence
        self._work = work
        self._num_failures = num_failures
        self._client = client
        self._client_of = client_of
        self._clients: dict[str, EngineClient | None] = {client.spec.alias: client}
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
        self._elsewhere: str | None = None  # a model that this step needs and we do not serve
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
        except _Elsewhere as elsewhere:
            self._move(elsewhere.model)
        except JobError as error:
            self._fail(error)
        except Exception as error:
            log.exception("recipe failed", extra=dict(self._ids))
            self._fail(RecipeFailed(error))
        else:
            if requests:
                if self.trace is not None:
                    self.trace.asked(requests)
                self._submit(requests)
                passing("requested")
                if self._over:  # meanwhile, and its cancellation came before these
                    self._cancel([each.id for each in requests])

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
        self._elsewhere = None
        if self.trace is not None:
            self.trace.part_began()

    def _client_for(self, request: Request) -> EngineClient | None:
        """The engine of the request's model; None where this worker does not serve it."""
        if request.model is None:
            return self._client
        if request.model not in self._clients:
            self._clients[request.model] = self._client_of(request.model)
        return self._clients[request.model]

    def _submit(self, requests: Sequence[Request]) -> None:
        by_client: dict[int, tuple[EngineClient, list[Request]]] = {}
        for request in requests:
            client = self._client_for(request)
            assert client is not None
            by_client.setdefault(id(client), (client, []))[1].append(request)
        for client, own in by_client.values():
            client.submit(own, self._receive)

    def _cancel(self, request_ids: Sequence[int]) -> None:
        """An engine that has none of these ignores them."""
        for client in self._clients.values():
            if client is not None:
                client.cancel(request_ids)

    def _give_up(self, failure: RequestFailed) -> None:
        """Tell the recipe, which may know another way; the rest of its step is wanted no more."""
        assert self._steps is not None
        self._cancel(list(self._in_flight))
        self._in_flight.clear()
        self._enter(self._steps.throw(failure))

    def _take(self, asked: _Asked, output: Output) -> None:
        self._outputs[asked.index] = output
        request, client = asked.request, self._client_for(asked.request)
        assert client is not None
        if request.model is not None:
            self._work.models[request.model] = identity(client.card)
        is_one_of_many = self._position > 1 or request.model is not None
        # On a way of several models a refusal is kept, too: the next worker cannot ask again.
        is_kept = bool(output.choices) or (
            request.model is not None
            and output.failure is not None
            and not output.failure.retryable
        )
        if is_one_of_many and self._on_segment is not None and is_kept:
            self._has_segments = True
            segment = segment_of(request, output, client.card)
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
                client = self._client_for(request)
                finished = finished_output(
                    segment, request, None if client is None else client.card
                )
                if finished is not None:
                    self._outputs[asked.index] = finished
                    if segment is not None and request.model is not None:
                        self._work.models[request.model] = segment["model"]
                elif client is None:
                    self._elsewhere = request.model
                else:
                    self._in_flight[request.id] = asked
                    requests.append(request)
            if self._in_flight:
                return requests
            if self._elsewhere is not None:
                raise _Elsewhere(self._elsewhere)
            outputs = tuple(self._outputs[index] for index in range(self._num_in_step))
            self._enter(self._steps.send(outputs))

    @property
    def _max_in_flight(self) -> int:
        """Enough to keep the engine busy; few, where somebody waits for other jobs as well."""
        num_rows = self._client.sized.spec.max_sequences or 1
        return max(num_rows // 4, 1) if self._work.is_interactive else 2 * num_rows

    def _move(self, model: str) -> None:
        """On to a worker that serves a model; what is finished goes along as segments."""
        if self.fence.attempt >= MAX_ATTEMPTS_ON_THE_WAY:
            self._fail(WayTooLong(self.fence.attempt))
        else:
            self._end(Outcome.moved(self.fence, model))

    def _fail(self, error: JobError) -> None:
        num_failures = self._num_failures + 1
        if error.retryable and num_failures < self._settings.max_failures:
            delay = backoff_seconds(
                num_failures, self._settings.retry_seconds, MAX_RETRY_SECONDS, random.random()
            )
            self._end(Outcome.retried(self.fence, error.code, str(error), delay))
        else:
            self._end(Outcome.failed(self.fence, error.code, str(error), error.output))

    def _end(self, outcome: Outcome) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
        if self.trace is not None:
            self.trace.ended(outcome)
        self._cancel(list(self._in_flight))
        self._on_outcome(outcome)
