"""Attempt: drives the recipe of one claimed job until there is an outcome."""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from db.outcome import Answer, Fence, FinishedSegment, Outcome
from engine.protocol.output import Output
from engine.protocol.request import Request
from worker.attempts.job_engines import JobEngines
from worker.attempts.job_trace import JobTrace
from worker.attempts.step import PendingRequest, Step
from worker.backoff import backoff_seconds
from worker.cache.content_cache import ContentCache
from worker.cache.content_key import ContentKey
from worker.cache.output_reader import RequestPage, StoredOutputs
from worker.cache.segments import PLACEHOLDERS, finished_output, identity, is_cached, segment_of
from worker.engines.engine_client import EngineClient
from worker.errors import JobError, RecipeFailed, RequestFailed, TimeLimitPassed, WayTooLong
from worker.failpoints import passing
from worker.guards.guard import Guard
from worker.recipes import Steps, Work, steps_of
from worker.settings import Settings

log = logging.getLogger(__name__)

MAX_RETRY_SECONDS = 600.0
# Each move to another worker is a new attempt and finishes something. After this many moves no
# progress is being kept.
MAX_ATTEMPTS_ON_THE_WAY = 200
# The size of a page: requests that are made and looked up before there is room for them.
PAGE_REQUESTS = 256
PAGE_CHARACTERS = 500_000
MAX_PART_KEYS = 20_000  # of a document whose part keys are cached
# Fields of a contract whose answers depend on more than the contract's text.
ELSEWHERE = ("route", "dialogue")


class _Elsewhere(Exception):
    """Only requests to a model that this worker does not serve are left."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model


class Pages(Protocol):
    """Reads stored outputs for a page of requests, on another thread."""

    def look_up(self, page: RequestPage) -> None: ...


class Attempt:
    """Runs a claimed job on an engine; calls `on_outcome` exactly once.

    One thread at a time advances the recipe: the claimer's, an engine's reader, or the output
    reader's. A thread that comes meanwhile queues its move for the one at work. `release` and
    `abandon` may be called from any thread.

    Of a job with many requests only a bounded number are at the engine at once, and each output
    lets the next one go, so that a long document takes turns with other jobs. Requests are made a
    page ahead and are never all in memory. For each page one look-up finds the outputs of earlier
    attempts (`segments`) and of the content cache. New outputs are passed to `on_segment`.
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
        pages: Pages | None = None,
        cache: ContentCache | None = None,
        ids: Callable[[], Mapping[str, str]] | None = None,
        guard: Guard | None = None,
        trace: JobTrace | None = None,
        client_of: Callable[[str], EngineClient | None] = lambda alias: None,
        keeps_placeholders: bool = False,
    ) -> None:
        """pages, cache:       None: all requests are computed
        ids:                the fields by which log lines name the job
        trace:              its spans; None: tracing is off
        client_of:          returns the engine of another model, for a job that runs on several
        keeps_placeholders: whether to store the placeholders of a masked job for its next
                            attempt; only if segments are encrypted, since they contain the
                            masked text
        """
        self.fence = fence
        self._work = work
        self._num_failures = num_failures
        self._client = client
        self._engines = JobEngines(client, client_of, cache)
        self._settings = settings
        self._on_outcome = on_outcome
        self._on_segment = on_segment
        self._pages = pages
        self._cache = cache
        self._sharing = None
        if cache is not None and work.contract.get("use_cache") is not False:
            self._sharing = cache.sharing(work.tenant, work.contract.get("seed") is not None)
        # An earlier attempt may have left segments.
        self._has_segments = fence.attempt > 1
        self._keeps_placeholders = keeps_placeholders and work.masker is not None
        self._guard = guard
        self._ids = ids or (lambda: {"job_id": str(fence.job_id)})
        self.trace = trace
        self._time_limit_seconds = time_limit_seconds
        self._made_at = time.monotonic()
        # None until it starts: it may wait for the documents or masking thread, which others use.
        self._started_at: float | None = None
        self._lock = threading.Lock()
        self._over = False
        self._moves: deque[Callable[[], None]] = deque()  # queued for the thread that makes moves
        self._is_moving = False
        self._steps: Steps | None = None  # until it starts
        self._step = Step.of((), 0)  # the current one
        self._position = 0  # of the next request
        self._num_parts = 0
        self._cached_parts: list[int] = []
        self._part_keys: list[bytes | None] = []  # in the content cache, of each part
        self._in_flight: dict[int, PendingRequest] = {}

    @property
    def run_seconds(self) -> float:
        """Seconds since the attempt was created, right after its job was claimed."""
        return time.monotonic() - self._made_at

    @property
    def is_over(self) -> bool:
        """Whether the attempt has its outcome, written or not."""
        return self._over

    def start(self) -> None:
        self._started_at = time.monotonic()
        self._move(self._begin)

    def release(self) -> None:
        """Give the job back unfinished, without blame."""
        self._end(Outcome.released(self.fence))

    def abandon(self) -> None:
        """Stop: the job was cancelled or another worker has it. The fence voids the outcome."""
        self._end(Outcome.released(self.fence))

    def fail_if_overdue(self, now: float) -> None:
        """End an attempt that has run longer than its job allows. now: monotonic"""
        limit, started_at = self._time_limit_seconds, self._started_at
        if limit is not None and started_at is not None and now - started_at > limit:
            self.fail(TimeLimitPassed(limit))

    def _receive(self, output: Output, is_shared: bool = False) -> None:
        self._move(lambda: self._arrive(output, is_shared))

    def _move(self, move: Callable[[], None]) -> None:
        """Make a move, or queue it for the thread that is making one."""
        with self._lock:
            self._moves.append(move)
            if self._is_moving:
                return
            self._is_moving = True
        while True:
            with self._lock:
                if self._over or not self._moves:
                    self._moves.clear()
                    self._is_moving = False
                    return
                move = self._moves.popleft()
            self._proceed(move)

    def _proceed(self, move: Callable[[], None]) -> None:
        """Make a move, and send as many requests as there is room for."""
        try:
            move()
            requests = self._next_requests()
        except StopIteration as finished:
            self._examine(self._with_cached_parts(finished.value))
        except _Elsewhere as elsewhere:
            self._move_on(elsewhere.model)
        except JobError as error:
            self.fail(error)
        except Exception as error:
            log.exception("recipe failed", extra=dict(self._ids()))
            self.fail(RecipeFailed(error))
        else:
            if requests:
                if self.trace is not None:
                    self.trace.asked([each.request for each in requests])
                self._engines.submit(requests, self.fence, self._receive)
                passing("requested")
                if self._over:  # ended meanwhile, before these requests were sent
                    self._engines.cancel(requests)

    def _begin(self) -> None:
        if self._keeps_placeholders and self._has_segments and self._pages is not None:
            place = range(PLACEHOLDERS, PLACEHOLDERS + 1)
            self._pages.look_up(RequestPage(self.fence.job_id, place, (), self._recall))
        else:
            self._set_out()

    def _recall(self, stored: StoredOutputs) -> None:
        """Restore the placeholders of an earlier attempt."""

        def move() -> None:
            self._work.placeholders.update(stored.segments.get(PLACEHOLDERS, {}))
            self._set_out()

        self._move(move)

    def _set_out(self) -> None:
        recipe = None if self._guard is None else self._guard.recipe
        self._steps = steps_of(self._work, recipe)
        self._enter(next(self._steps))

    def _examine(self, answer: Answer) -> None:
        if self._guard is None:
            self._conclude(answer)
        else:
            self._guard.examine(self._work, answer, self._conclude)

    def _conclude(self, verdict: Answer | JobError) -> None:
        """End the attempt, on the thread of the last output or of the guards."""
        if isinstance(verdict, JobError):
            self.fail(verdict)
        else:
            self._remember_document()
            self._end(Outcome.succeeded(self.fence, verdict, self._has_segments))

    def _remember_document(self) -> None:
        """Cache the keys of a document's parts, so that an estimate can count the cached ones."""
        keys = [key for key in self._part_keys if key is not None]
        if self._cache is None or self._sharing is None or not 1 < len(keys) <= MAX_PART_KEYS:
            return
        work = self._work
        if work.masker is not None:
            return  # the digest of the unmasked text would outlive the text
        if len(keys) == len(self._part_keys) and set(work.contract).isdisjoint(ELSEWHERE):
            model = self._client.model_digest
            key = self._cache.document_key(work.task, work.contract, self._sharing, model)
            self._cache.remember_document(self.fence, key, self._sharing.tenant, b"".join(keys))

    def _enter(self, requests: Iterable[Request]) -> None:
        """Begin a step of the recipe."""
        self._step = Step.of(requests, self._num_parts)
        if self.trace is not None:
            self.trace.part_began()

    def _arrive(self, output: Output, is_shared: bool) -> None:
        pending = self._in_flight.pop(output.request_id, None)
        if pending is None:
            return  # of a step that the recipe has given up
        if self.trace is not None:
            self.trace.answered(output)
        passing("generated")
        if output.failure is not None and not self._step.is_fallible:
            self._give_up(RequestFailed(output.failure))
        else:
            pending.is_cached = is_shared
            self._take(pending, output)
            self._keep(pending, output)

    def _give_up(self, failure: RequestFailed) -> None:
        """Raise the failure in the recipe, which may continue; cancel the rest of its step."""
        assert self._steps is not None
        self._engines.cancel(list(self._in_flight.values()))
        self._in_flight.clear()
        self._num_parts = self._step.num_parts_before
        self._cached_parts = [each for each in self._cached_parts if each <= self._num_parts]
        del self._part_keys[self._num_parts :]
        self._enter(self._steps.throw(failure))

    def _take(self, pending: PendingRequest, output: Output) -> None:
        self._step.outputs[pending.index] = output
        if pending.is_cached and pending.part is not None:
            self._cached_parts.append(pending.part)

    def _keep(self, pending: PendingRequest, output: Output) -> None:
        """Store an output as a segment for a possible next attempt."""
        request, client = pending.request, self._engines.engine_for(pending.request)
        assert client is not None
        if request.model is not None:
            self._work.models[request.model] = identity(client.card)
        is_one_of_many = self._position > 1 or request.model is not None
        # A refusal is kept too if the job uses several models: the next worker cannot ask again.
        is_kept = bool(output.choices) or (
            request.model is not None
            and output.failure is not None
            and not output.failure.retryable
        )
        if is_one_of_many and self._on_segment is not None and is_kept:
            self._has_segments = True
            self._keep_placeholders()
            segment = segment_of(
                request, output, client.model_digest, client.card, is_cached=pending.is_cached
            )
            self._on_segment(FinishedSegment(self.fence, pending.position, segment))

    def _keep_placeholders(self) -> None:
        """Store the placeholders before the first output that contains them."""
        if self._keeps_placeholders and self._on_segment is not None and self._work.placeholders:
            segment = dict(self._work.placeholders)
            self._on_segment(FinishedSegment(self.fence, PLACEHOLDERS, segment))
        self._keeps_placeholders = False

    # --- requests --------------------------------------------------------------------------

    def _next_requests(self) -> list[PendingRequest]:
        """The requests to send now; advances the recipe past finished steps.

        Raises StopIteration with the answer.
        """
        if self._steps is None:
            return []  # it has not begun
        requests: list[PendingRequest] = []
        while True:
            while len(self._in_flight) < self._max_in_flight:
                pending = self._next_ready()
                if pending is None:
                    break
                if pending.stored is not None:
                    self._take(pending, pending.stored)
                    if pending.request.model is not None and not pending.is_segment:
                        # For a later worker of the job, which may not serve this model.
                        self._keep(pending, pending.stored)
                    continue
                if self._engines.engine_for(pending.request) is None:
                    self._step.missing_model = pending.request.model
                    continue
                self._in_flight[pending.request.id] = pending
                requests.append(pending)
            if self._in_flight or self._step.is_looking_up:
                return requests
            if self._step.missing_model is not None:
                raise _Elsewhere(self._step.missing_model)
            self._enter(self._steps.send(self._step.outputs_in_order()))

    def _next_ready(self) -> PendingRequest | None:
        """The next request that was looked up; None while a look-up runs, or if none is left."""
        step = self._step
        if len(step.ready) <= PAGE_REQUESTS // 2 and not (step.is_made or step.is_looking_up):
            self._look_up(self._next_page())
        return step.ready.popleft() if step.ready else None

    def _next_page(self) -> list[PendingRequest]:
        page: list[PendingRequest] = []
        num_characters = 0
        while len(page) < PAGE_REQUESTS and num_characters < PAGE_CHARACTERS:
            request = self._step.next_request()
            if request is None:
                break
            part = None
            if not request.is_measured:
                self._num_parts += 1
                part = self._num_parts
            key = None
            client = self._engines.engine_for(request)
            if self._cache is not None and self._sharing is not None and client is not None:
                key = self._cache.key(request, self._sharing, client.model_digest)
            if part is not None:
                self._part_keys.append(None if key is None else key.digest)
            index = self._step.num_requests - 1
            page.append(PendingRequest(request, index, self._position, part, key))
            self._position += 1
            num_characters += len(request.text or "") + sum(map(len, request.measured_texts))
        return page

    def _look_up(self, page: list[PendingRequest]) -> None:
        """Look up which outputs of a page are stored; then its requests are ready."""
        step = self._step
        has_segments = self.fence.attempt > 1 and any(pending.part is not None for pending in page)
        positions = range(page[0].position, page[-1].position + 1) if has_segments else range(0)
        keys = [
            pending.key.digest for pending in page if pending.key and self._is_unknown(pending.key)
        ]
        if self._pages is None or not (positions or keys):
            step.ready += page
            return
        step.is_looking_up = True

        def on_read(stored: StoredOutputs) -> None:
            self._move(lambda: self._looked_up(step, page, stored))

        self._pages.look_up(RequestPage(self.fence.job_id, positions, keys, on_read))

    def _is_unknown(self, key: ContentKey) -> bool:
        """Whether the answer is not in memory, so that the database must be asked."""
        assert self._cache is not None
        return self._cache.needs_database(key, self._work.is_interactive)

    def _looked_up(self, step: Step, page: list[PendingRequest], stored: StoredOutputs) -> None:
        if step is not self._step:
            return  # the recipe has given it up
        step.is_looking_up = False
        for pending in page:
            self._use_kept(pending, stored)
        step.ready += page

    def _use_kept(self, pending: PendingRequest, stored: StoredOutputs) -> None:
        """Take the stored output of a request, if there is one."""
        request, client = pending.request, self._engines.engine_for(pending.request)
        segment = stored.segments.get(pending.position)
        model = None if client is None else client.model_digest
        pending.stored = finished_output(segment, request, model)
        if pending.stored is not None:
            assert segment is not None
            pending.is_segment = True
            pending.is_cached = is_cached(segment)
            if request.model is not None:
                self._work.models[request.model] = segment["model"]
        elif pending.key is not None and self._cache is not None and client is not None:
            output = stored.outputs.get(pending.key.digest)
            if output is not None:
                pending.stored = self._cache.read(client, request, pending.key, output)
            pending.is_cached = pending.stored is not None
            if pending.is_cached and request.model is not None:
                self._work.models[request.model] = identity(client.card)

    @property
    def _max_in_flight(self) -> int:
        """The number of requests that keep the engine busy; fewer for an interactive job."""
        num_rows = self._client.sized.spec.max_sequences or 1
        return max(num_rows // 4, 1) if self._work.is_interactive else 2 * num_rows

    def _move_on(self, model: str) -> None:
        """Hand the job to a worker that serves the model, with its finished requests as
        segments."""
        if self.fence.attempt >= MAX_ATTEMPTS_ON_THE_WAY:
            self.fail(WayTooLong(self.fence.attempt))
        else:
            self._end(Outcome.moved(self.fence, model))

    def fail(self, error: JobError) -> None:
        """End the attempt with an error; the job is retried if another attempt could help."""
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
        if self._in_flight:
            self._engines.cancel(list(self._in_flight.values()))
        self._on_outcome(outcome)

    def _with_cached_parts(self, answer: Answer) -> Answer:
        """Add to the answer which of its requests came from the cache."""
        if not self._cached_parts:
            return answer
        report = {"num_parts": self._num_parts, "cached": ranges(self._cached_parts)}
        return replace(
            answer,
            provenance={**answer.provenance, "cached_parts": report},
            cached_parts=len(self._cached_parts),
        )


def ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Compress numbers to [first, last] pairs of consecutive ones."""
    rows: list[list[int]] = []
    for number in sorted(numbers):
        if rows and number == rows[-1][1] + 1:
            rows[-1][1] = number
        else:
            rows.append([number, number])
    return rows
