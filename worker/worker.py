"""Worker: takes deliveries, runs their jobs on its engines, and settles them.

    deliver -> claimer -> attempt (recipe <-> engine client) -> committer -> settle

It does not know Celery; `worker.celery.pool` and `worker.celery.run_jobs` connect the two.
"""

import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from db.encryption.key_check import require_keys
from db.lane import Lane
from db.outcome import Fence, Outcome
from db.schema import require_current
from db.session import Database
from db.upkeep.retention import Retention
from tasks.canaries import Canary, canaries_of
from tasks.configuration import settings as places
from tasks.configuration.catalog import Model
from tasks.configuration.masking import Masking, masking_of
from tasks.configuration.retention import retention_of
from tasks.quarantine import ended_listeners
from tasks.queues import queue_names
from tasks.tracing import tracer
from worker import quarantine
from worker.attempts.attempt import Attempt
from worker.attempts.job_trace import JobTrace
from worker.cache.content_cache import ContentCache
from worker.cache.output_reader import OutputReader
from worker.cache.settings import CacheSettings
from worker.cache.upkeep import CacheUpkeep
from worker.claimer import ClaimedJob, Claimer
from worker.committer import Committer
from worker.consumer_watchdog import ConsumerWatchdog
from worker.delivery import Delivery
from worker.dispatcher.dispatcher import Dispatcher
from worker.dispatcher.nightly_pass import NightlyPass
from worker.engines.fleet import EngineFleet
from worker.errors import TextUnopenable
from worker.guards.guard import Guard
from worker.heartbeat import Heartbeat
from worker.masking.masker import Maskers
from worker.metrics.figures import WorkerFigures
from worker.metrics.metrics import NO_METRICS, Metrics
from worker.quarantine import QuarantineMover
from worker.recipes import Work
from worker.settings import Settings

log = logging.getLogger(__name__)

# A longer text is split or masked on a separate thread, so that claiming goes on.
MAX_CLAIMER_CHARACTERS = 50_000
DRAIN_POLL_SECONDS = 0.2  # between two checks whether a drain should end at once


class Worker:
    """Owns the engines and the threads that feed them. Starts and stops once."""

    def __init__(
        self,
        database: Database,
        models: Sequence[Model],
        settings: Settings,
        on_consumer_stalled: Callable[[], None],
        cache_settings: CacheSettings | None = None,
        retention: Retention | None = None,
        guards: Mapping[str, Any] | None = None,
        masking: Masking | None = None,
        canaries: Sequence[Canary] = (),
        known_models: Iterable[str] = (),
    ) -> None:
        """retention:    None: nothing is pruned
        guards:       the [guards] table of `tidemill.toml`
        masking:      None: nothing is masked
        canaries:     submitted every night
        known_models: aliases of the whole configuration, of which other workers may serve some;
                      the leader reports figures for all
        """
        cache_settings = cache_settings or CacheSettings()
        self.settings = settings
        self._canaries = canaries
        self._guard = Guard(guards if guards is not None else {})
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._database = database
        self._models = models
        self._known_models = {*known_models, *(model.alias for model in models)}
        self._request_ids = itertools.count(1)
        self._fleet = EngineFleet(database, models)
        self._maskers = Maskers(masking or Masking())
        self._languages = {model.alias: model.languages for model in models}
        # Reentrant: Celery's signal handler may run on the thread that holds it.
        self._lock = threading.RLock()
        self._settled = threading.Condition(self._lock)
        self._running: dict[Fence, tuple[Attempt, ClaimedJob]] = {}
        self._deliveries: set[Delivery] = set()
        self._draining = False
        self._documents = ThreadPoolExecutor(1, "documents")
        self._masking = {lane: ThreadPoolExecutor(1, "masking") for lane in Lane}
        self._stops_now = False
        self._is_ready = False
        self._metrics = self._make_metrics()
        # Whether the end of each job is counted or logged.
        self._is_watched = self._metrics is not NO_METRICS or settings.log_format == "json"
        self._committer = Committer(
            database,
            settings,
            self._settle,
            lambda num_buffered: num_buffered >= len(self._running),
            self._on_committed,
            self._ids_of,
        )
        self._output_reader = OutputReader(database, cache_settings.ttl_seconds)
        self._cache = ContentCache(
            cache_settings,
            self._committer.remember,
            self._metrics,
            None if database.keys is None else database.keys.fingerprint,
        )
        self._cache_upkeep = CacheUpkeep(
            database, self.owner, self._cache, lambda: self._committer.num_cached_bytes
        )
        self._claimer = Claimer(
            database, self.owner, settings, self._start_jobs, lambda: self._committer.is_full
        )
        self._heartbeat = Heartbeat(
            database,
            self.owner,
            settings,
            running=self._attempts,
            clients=self._fleet.clients,
            capacity=self._fleet.capacity,
            engines=self._fleet.settings,
            metrics=self._metrics,
        )
        self._dispatcher = Dispatcher(database, self.owner, settings, metrics=self._metrics)
        self._nightly = NightlyPass(
            database,
            self.owner,
            retention or Retention(),
            lambda: self._dispatcher.leads,
            canaries=canaries,
        )
        self._watchdog = ConsumerWatchdog(
            queue_names(self._fleet.aliases),
            settings.consumer_stall_seconds,
            self._is_idle,
            on_consumer_stalled,
        )
        self._quarantine = QuarantineMover(database)
        self._parts = (
            self._quarantine,
            self._committer,
            self._output_reader,
            self._cache_upkeep,
            self._claimer,
            self._heartbeat,
            self._dispatcher,
            self._nightly,
            self._watchdog,
        )

    @classmethod
    def from_configuration(cls, on_consumer_stalled: Callable[[], None]) -> "Worker":
        """The worker that the environment and `tidemill.toml` describe.

        on_consumer_stalled: called when messages wait but none is delivered
        """
        catalog = places.catalog()
        models = list(catalog.only(places.served_models()).values())
        return cls(
            places.database(),
            models,
            Settings.from_environment(catalog.worker, os.environ),
            on_consumer_stalled,
            CacheSettings.of(catalog.cache),
            retention_of(catalog.retention),
            catalog.guards,
            masking_of(catalog.masking),
            canaries_of(catalog.canaries),
            catalog.models,
        )

    def _make_metrics(self) -> Metrics:
        if self.settings.metrics_port is None:
            return NO_METRICS
        # Imported here, so that a worker without metrics does not load it.
        from worker.metrics.database_watch import DatabaseWatch
        from worker.metrics.prometheus import PrometheusMetrics

        watch = DatabaseWatch(
            self._database,
            lambda: self._dispatcher.leads,
            sorted(self._known_models),
            Path.cwd(),
            canaries=self._canaries,
        )
        return PrometheusMetrics(
            self.settings.metrics_host, self.settings.metrics_port, self.figures, watch
        )

    # --- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Load every model, then start; raises before any job is taken if one cannot be loaded."""
        require_current(self._database)
        require_keys(self._database)
        self._metrics.start()
        try:
            self._fleet.start()
        except BaseException:
            self._metrics.stop()
            raise
        if self._metrics is not NO_METRICS:
            ended_listeners.append(self._metrics.count_refused)
        for part in self._parts:
            part.start()
        self._is_ready = True
        log.info(
            "worker started", extra={"owner": self.owner, "models": sorted(self._fleet.aliases)}
        )

    def drain(self, seconds: float) -> None:
        """Stop taking jobs, finish those that fit in the time, and release the rest."""
        self._is_ready = False
        self._claimer.stop()
        until = time.monotonic() + seconds
        with self._settled:
            self._draining = True
            while self._running and not self._stops_now and time.monotonic() < until:
                self._settled.wait(DRAIN_POLL_SECONDS)
        for attempt in self._attempts():
            attempt.release()
        self._committer.stop()

    def stop_now(self) -> None:
        """End a drain's wait. May be called from a signal handler: it takes no lock."""
        self._stops_now = True

    def stop(self) -> None:
        """End every thread and process of this worker; call `drain` first to lose no work."""
        self._watchdog.stop()
        self._nightly.stop()
        self._dispatcher.stop()
        for pool in (self._documents, *self._masking.values()):
            pool.shutdown(wait=False, cancel_futures=True)
        self.drain(0)
        self._fleet.stop()
        self._output_reader.stop()
        self._cache_upkeep.stop()
        self._guard.stop()
        self._quarantine.stop()
        self._heartbeat.stop()
        if self._metrics.count_refused in ended_listeners:
            ended_listeners.remove(self._metrics.count_refused)
        self._metrics.stop()

    # --- jobs ----------------------------------------------------------------------------------

    def deliver(self, job_ids: Iterable[UUID], on_settled: Callable[[], None]) -> Delivery:
        """Take the jobs of a message; `on_settled` is called when the last is committed."""

        def settled() -> None:
            with self._lock:
                self._deliveries.discard(delivery)
            on_settled()

        delivery = Delivery(job_ids, settled)
        if not delivery.job_ids:
            on_settled()
            return delivery
        with self._lock:
            self._deliveries.add(delivery)
        self._claimer.put(delivery)
        return delivery

    def release(self, delivery: Delivery) -> None:
        """Release the jobs of a delivery that are still running."""
        with self._lock:
            unfinished = [
                attempt for attempt, job in self._running.values() if job.delivery is delivery
            ]
        for attempt in unfinished:
            attempt.release()

    def figures(self) -> WorkerFigures:
        """The present figures of this worker, for metrics."""
        with self._lock:
            num_running, num_deliveries = len(self._running), len(self._deliveries)
        return WorkerFigures(
            is_ready=self._is_ready,
            leads=self._dispatcher.leads,
            num_running=num_running,
            num_deliveries=num_deliveries,
            num_unwritten=self._committer.num_unwritten,
            num_set_aside=quarantine.num_set_aside,
            engines=tuple(client.figures for client in self._fleet.clients),
        )

    def info(self) -> dict[str, Any]:
        """The present state of this worker, JSON-able, for `inspect stats` and Flower."""
        with self._lock:
            num_running, num_deliveries = len(self._running), len(self._deliveries)
        return {
            "owner": self.owner,
            "leads": self._dispatcher.leads,
            "num_running_jobs": num_running,
            "num_deliveries": num_deliveries,
            "num_unwritten_outcomes": self._committer.num_unwritten,
            "num_messages_set_aside": quarantine.num_set_aside,
            "cache": {"num_hits": self._cache.num_hits, "num_shared": self._cache.num_shared},
            "engines": self._fleet.activity(),
        }

    def _start_jobs(self, claimed: list[ClaimedJob]) -> None:
        with self._output_reader.together():
            self._start_each(claimed)

    def _start_each(self, claimed: list[ClaimedJob]) -> None:
        # Checked once for all jobs, so that a feature that is off costs a job nothing.
        tracer_in_use, masks = tracer(), self._maskers.masks
        cache = self._cache if self._cache.settings.enabled else None
        for job in claimed:
            own = self._fleet.least_busy(job.model)
            client = own or self._fleet.clients[0]  # which gets no request
            contract = job.contract or {}
            work = Work(
                job.fence.job_id,
                job.task,
                contract,
                client.card,
                self._request_ids,
                job.lane is Lane.INTERACTIVE,
                self._languages.get(job.model, ()),
                job.tenant,
                self._maskers.masker_for(job.task, job.tenant) if masks else None,
            )
            attempt = Attempt(
                job.fence,
                work,
                job.num_failures,
                client,
                self.settings,
                job.time_limit_seconds,
                partial(self._committer.put, is_urgent=job.lane is Lane.INTERACTIVE),
                self._committer.keep,
                self._output_reader,
                cache,
                job.ids,
                self._guard,
                None
                if tracer_in_use is None
                else JobTrace.of(
                    tracer_in_use,
                    job.fence.job_id,
                    job.batch_id,
                    job.traceparent,
                    job.claim_began_ns,
                    task=job.task,
                    model=job.model,
                    attempt=job.fence.attempt,
                ),
                self._fleet.least_busy,
                self._database.keys is not None,
            )
            with self._lock:
                self._running[job.fence] = (attempt, job)
                draining = self._draining
            if draining or own is None:
                # Its model is not served here: the message was in a wrong queue, and the dispatcher
                # publishes another.
                attempt.release()
            elif job.contract is None:
                log.error("text does not open", extra=job.ids())
                attempt.fail(TextUnopenable())
            elif (pool := self._pool_of(job.lane, work)) is not None:
                pool.submit(attempt.start)
            else:
                attempt.start()

    def _pool_of(self, lane: Lane, work: Work) -> ThreadPoolExecutor | None:
        """The thread pool for a job's first step; None: the claimer's thread, for a quick one."""
        masker = work.masker
        if masker is not None and masker.is_foreign:
            # An operator's pattern may take a second for each job. Meanwhile other jobs would wait
            # to be claimed, and leases of jobs claimed with it would expire.
            return self._masking[lane]
        num_characters = len(work.contract.get("text") or "")
        if masker is not None and num_characters <= MAX_CLAIMER_CHARACTERS:
            num_characters = masker.num_characters(work.contract)
        return self._documents if num_characters > MAX_CLAIMER_CHARACTERS else None

    def _on_committed(self, outcomes: Sequence[Outcome], num_fenced: int) -> None:
        """Count and log the outcomes that changed a row, after their commit."""
        if not self._is_watched:
            return
        with self._lock:
            ended = [(outcome, self._running.get(outcome.fence)) for outcome in outcomes]
        try:
            for outcome, running in ended:
                if running is not None:
                    attempt, job = running
                    self._say_ended(outcome, job, attempt.run_seconds)
            if num_fenced:
                self._metrics.count_fenced(num_fenced)
        except Exception:  # the outcome is committed and must not be written again
            log.exception("not counted")

    def _say_ended(self, outcome: Outcome, job: ClaimedJob, run_seconds: float) -> None:
        self._metrics.count_outcome(job.task, job.model, outcome, job.wait_seconds, run_seconds)
        if self.settings.log_format == "json":
            log.info(
                "attempt ended",
                extra={
                    **job.ids(),
                    "task": job.task,
                    "model": job.model,
                    "attempt": job.fence.attempt,
                    "next_state": outcome.state.value,
                    "error_code": outcome.error_code,
                    "run_seconds": round(run_seconds, 3),
                },
            )

    def _ids_of(self, fence: Fence) -> dict[str, str]:
        with self._lock:
            running = self._running.get(fence)
        return {"job_id": str(fence.job_id)} if running is None else running[1].ids()

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        """Settle the messages of these jobs after the commit, so that they may be acked."""
        with self._settled:
            ended = [
                (outcome.fence, self._running.pop(outcome.fence, None)) for outcome in outcomes
            ]
            self._settled.notify_all()
        self._cache_upkeep.notice()
        for fence, running in ended:
            if running is not None:
                attempt, job = running
                if attempt.trace is not None:
                    attempt.trace.committed()
                job.delivery.settle([fence.job_id])

    def _attempts(self) -> list[Attempt]:
        with self._lock:
            return [attempt for attempt, _ in self._running.values()]

    def _is_idle(self) -> bool:
        with self._lock:
            return not self._deliveries and not self._draining
