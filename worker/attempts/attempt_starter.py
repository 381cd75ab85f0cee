"""AttemptStarter: makes an attempt for each claimed job, and chooses the thread that starts it."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from db.lane import Lane
from tasks.tracing import tracer
from worker.attempts.attempt import Attempt
from worker.attempts.job_trace import JobTrace
from worker.cache.content_cache import ContentCache
from worker.cache.output_reader import OutputReader
from worker.claimer import ClaimedJob
from worker.committer import Committer
from worker.engines.fleet import EngineFleet
from worker.errors import TextUnopenable
from worker.guards.guard import Guard
from worker.masking.masker import Maskers
from worker.recipes import Work
from worker.settings import Settings

log = logging.getLogger(__name__)

# Longer texts are split or masked on a separate thread, since other jobs would wait to be claimed.
MAX_CLAIMER_CHARACTERS = 50_000


@dataclass(frozen=True, slots=True)
class NewAttempt:
    """An attempt that has not started."""

    attempt: Attempt
    job: ClaimedJob
    work: Work
    is_served: bool  # whether an engine of this worker runs the job's model


class AttemptStarter:
    """Owns the threads on which jobs with long or slowly masked texts start."""

    def __init__(
        self,
        fleet: EngineFleet,
        settings: Settings,
        committer: Committer,
        output_reader: OutputReader,
        cache: ContentCache,
        guard: Guard,
        maskers: Maskers,
        languages: Mapping[str, tuple[str, ...]],
        *,
        has_keys: bool,
    ) -> None:
        """languages: the languages of each model, by alias
        has_keys:  whether texts are encrypted at rest
        """
        self._fleet = fleet
        self._settings = settings
        self._committer = committer
        self._output_reader = output_reader
        self._cache = cache
        self._guard = guard
        self._maskers = maskers
        self._languages = languages
        self._has_keys = has_keys
        self._request_ids = itertools.count(1)
        self._documents = ThreadPoolExecutor(1, "documents")
        self._masking = {lane: ThreadPoolExecutor(1, "masking") for lane in Lane}

    def stop(self) -> None:
        """Start no more attempts; those that wait for a thread never start."""
        for pool in (self._documents, *self._masking.values()):
            pool.shutdown(wait=False, cancel_futures=True)

    def make(self, claimed: Iterable[ClaimedJob]) -> Iterator[NewAttempt]:
        """Make an attempt for each claimed job."""
        # Checked once for all jobs, so that a feature that is off costs a job nothing.
        tracer_in_use, masks = tracer(), self._maskers.masks
        cache = self._cache if self._cache.settings.enabled else None
        for job in claimed:
            own = self._fleet.least_busy(job.model)
            client = own or self._fleet.clients[0]  # which gets no request
            is_interactive = job.lane is Lane.INTERACTIVE
            work = Work(
                job.fence.job_id,
                job.task,
                job.contract or {},
                client.card,
                self._request_ids,
                is_interactive,
                self._languages.get(job.model, ()),
                job.tenant,
                self._maskers.masker_for(job.task, job.tenant) if masks else None,
            )
            trace = None
            if tracer_in_use is not None:
                trace = JobTrace.of(
                    tracer_in_use,
                    job.fence.job_id,
                    job.batch_id,
                    job.traceparent,
                    job.claim_began_ns,
                    task=job.task,
                    model=job.model,
                    attempt=job.fence.attempt,
                )
            attempt = Attempt(
                job.fence,
                work,
                job.num_failures,
                client,
                self._settings,
                job.time_limit_seconds,
                partial(self._committer.put, is_urgent=is_interactive),
                self._committer.keep,
                self._output_reader,
                cache,
                job.ids,
                self._guard,
                trace,
                self._fleet.least_busy,
                self._has_keys,
            )
            yield NewAttempt(attempt, job, work, own is not None)

    def start(self, new: NewAttempt) -> None:
        """Start the attempt: on this thread if its first step is quick, else on another."""
        if not new.is_served:
            # The message was in the wrong queue; the dispatcher publishes another.
            new.attempt.release()
        elif new.job.contract is None:
            log.error("text does not open", extra=new.job.ids())
            new.attempt.fail(TextUnopenable())
        elif (pool := self._pool_of(new.job.lane, new.work)) is not None:
            pool.submit(new.attempt.start)
        else:
            new.attempt.start()

    def _pool_of(self, lane: Lane, work: Work) -> ThreadPoolExecutor | None:
        """The thread pool for a job's first step; None: the caller's thread, for a quick one."""
        masker = work.masker
        if masker is not None and masker.is_foreign:
            # An operator's pattern may take a second for each job. On the claimer's thread other
            # jobs would wait to be claimed, and the leases of jobs in the same message would
            # expire.
            return self._masking[lane]
        num_characters = len(work.contract.get("text") or "")
        if masker is not None and num_characters <= MAX_CLAIMER_CHARACTERS:
            num_characters = masker.num_characters(work.contract)
        return self._documents if num_characters > MAX_CLAIMER_CHARACTERS else None
