"""A worker: takes deliveries in, runs their jobs on its engines, and settles them.

    deliver -> claimer -> attempt (recipe <-> engine client) -> committer -> settle

It knows nothing of Celery; `worker.celery.pool` and `worker.celery.run_jobs` bring the two
together.
"""

import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
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
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import AS_CONFIGURED
from engine.protocol.messages import ModelCard
from engine.protocol.model_settings import ModelSettings
from tasks.canaries import Canary, canaries_of
from tasks.configuration import settings as places
from tasks.configuration.catalog import Model
from tasks.configuration.masking import Masking, masking_of
from tasks.configuration.retention import retention_of
from tasks.queues import queue_names
from worker import quarantine
from worker.attempts.attempt import Attempt
from worker.attempts.job_trace import JobTrace
from worker.cache.content_cache import ContentCache
from worker.cache.kept_outputs import KeptOutputs
from worker.cache.settings import CacheSettings
from worker.cache.upkeep import CacheUpkeep
from worker.claimer import ClaimedJob, Claimer
from worker.committer import Committer
from worker.consumer_watchdog import ConsumerWatchdog
from worker.delivery import Delivery
from worker.dispatcher.dispatcher import Dispatcher
from worker.dispatcher.nightly_pass import NightlyPass
from worker.engines.cpu_count import threads_of_an_engine
from worker.engines.engine_client import EngineClient
from worker.engines.model_record import changed_files
from worker.guards.guard import Guard
from worker.heartbeat import Heartbeat
from worker.masking.masker import Maskers
from worker.metrics.figures import WorkerFigures
from worker.metrics.metrics import NO_METRICS, Metrics
from worker.quarantine import QuarantineMover
from worker.recipes import Work
from worker.settings import Settings

log = logging.getLogger(__name__)

# A longer text is split on a thread of its own, or other jobs would wait for it to be claimed.
MAX_CLAIMER_CHARACTERS = 50_000
HURRY_SECONDS = 0.2  # how late a drain notices that it should end


class Worker:
    """Owns the engines and the threads that feed them; starts and stops once."""

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
    ) -> None:
        """retention: of what is kept; None: for ever
        guards: the [guards] table of `tidemill.toml`
        masking: what of a job's text the model does not see; None: nothing
        canaries: submitted every night
        """
        cache_settings = cache_settings or CacheSettings()
        self.settings = settings
        self._canaries = canaries
        self._guard = Guard(guards if guards is not None else {})
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._database = database
        self._models = models
        self._request_ids = itertools.count(1)
        num_engines = sum(model.replicas for model in models)
        threads = threads_of_an_engine(num_engines)
        self._threads_reason = f"an equal share of the cores, with {num_engines} engines"
        self._clients: dict[str, list[EngineClient]] = {
            model.alias: [
                EngineClient(engine_spec(model, threads, replica))
                for replica in range(model.replicas)
            ]
            for model in models
        }
        self._changed_weights: dict[str, dict[str, Any]] = {}  # by alias, see `changed_files`
        self._maskers = Maskers(masking or Masking())
        self._languages = {model.alias: model.languages for model in models}
        # A signal handler of Celery's comes here too, on a thread that may hold it.
        self._lock = threading.RLock()
        self._settled = threading.Condition(self._lock)
        self._running: dict[Fence, tuple[Attempt, ClaimedJob]] = {}
        self._deliveries: set[Delivery] = set()
        self._draining = False
        self._documents = ThreadPoolExecutor(1, "documents")
        self._hurried = False
        self._is_ready = False
        self._metrics = self._make_metrics()
        # Whether anybody wants to know of a single job that it ended.
        self._is_watched = self._metrics is not NO_METRICS or settings.log_format == "json"
        self._committer = Committer(
            database,
            settings,
            self._settle,
            lambda num_buffered: num_buffered >= len(self._running),
            self._on_committed,
            self._ids_of,
        )
        self._kept_outputs = KeptOutputs(database, cache_settings.ttl_seconds)
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
            clients=self._engines,
            capacity=self.capacity,
            engines=self.engines,
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
            queue_names(self._clients),
            settings.consumer_stall_seconds,
            self._is_idle,
            on_consumer_stalled,
        )
        self._quarantine = QuarantineMover(database)
        self._parts = (
            self._quarantine,
            self._committer,
            self._kept_outputs,
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

        on_consumer_stalled is called when messages wait and none is delivered.
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
        )

    def capacity(self) -> dict[str, int]:
        """The jobs of each model that this worker wants at hand: what runs, and as many waiting."""
        return {
            alias: sum(2 * (client.sized.spec.max_sequences or 0) for client in replicas)
            for alias, replicas in self._clients.items()
        }

    def engines(self) -> list[dict[str, Any]]:
        """What each engine loaded, how it was sized, with reasons, and how many requests went
        which way; JSON-able."""
        return [
            {
                "model": client.spec.alias,
                "card": client.card.to_json(),
                "changed_weights": self._changed_weights.get(client.spec.alias),
                "settings": {
                    name: {"value": getattr(client.sized.spec, name), "reason": reason}
                    for name, reason in self._reasons_of(client).items()
                },
                "requests": {
                    "in_flight": client.progress.num_in_flight,
                    "by_generate": client.progress.num_by_generate,
                },
            }
            for client in self._engines
        ]

    def _make_metrics(self) -> Metrics:
        if self.settings.metrics_port is None:
            return NO_METRICS
        # Imported here: a worker that is not measured does without.
        from worker.metrics.database_watch import DatabaseWatch
        from worker.metrics.prometheus import PrometheusMetrics

        watch = DatabaseWatch(
            self._database,
            lambda: self._dispatcher.leads,
            [model.alias for model in self._models],
            Path.cwd(),
            canaries=self._canaries,
        )
        return PrometheusMetrics(
            self.settings.metrics_host, self.settings.metrics_port, self.figures, watch
        )

    def _reasons_of(self, client: EngineClient) -> dict[str, str]:
        model = next(each for each in self._models if each.alias == client.spec.alias)
        threads = self._threads_reason if model.threads is None else AS_CONFIGURED
        return {**client.sized.reasons, "threads": threads}

    # --- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Load every model, then begin; raises before any job is taken if one cannot be."""
        require_current(self._database)
        require_keys(self._database)
        self._metrics.start()
        with ThreadPoolExecutor(max_workers=len(self._engines)) as pool:
            loading = [pool.submit(client.start) for client in self._engines]
        failed = [error for future in loading if (error := future.exception()) is not None]
        if failed:
            for client in self._engines:
                client.stop()
            self._metrics.stop()
            raise failed[0]
        for client in self._engines:
            self._compare_weights(client.card)
        for part in self._parts:
            part.start()
        self._is_ready = True
        log.info("worker started", extra={"owner": self.owner, "models": sorted(self._clients)})

    def _compare_weights(self, card: ModelCard) -> None:
        """Say it where the files of a model are others than those that answered before."""
        changed = changed_files(self._database, card)
        if changed is not None:
            self._changed_weights[card.alias] = changed
            log.warning(
                "model changed",
                extra={
                    "model": card.alias,
                    "files": changed["files"],
                    "revision_before": changed["revision_before"],
                    "revision": card.revision,
                },
            )

    def drain(self, seconds: float) -> None:
        """Take nothing more, finish what fits in the time, and give the rest back unblamed."""
        self._is_ready = False
        self._claimer.stop()
        until = time.monotonic() + seconds
        with self._settled:
            self._draining = True
            while self._running and not self._hurried and time.monotonic() < until:
                self._settled.wait(HURRY_SECONDS)
        for attempt in self._attempts():
            attempt.release()
        self._committer.stop()

    def hurry(self) -> None:
        """Let a drain wait no longer. May be called from a signal handler: it takes no lock."""
        self._hurried = True

    def stop(self) -> None:
        """End every thread and process of this worker; drain first to lose no work."""
        self._watchdog.stop()
        self._nightly.stop()
        self._dispatcher.stop()
        self._documents.shutdown(wait=False, cancel_futures=True)
        self.drain(0)
        for client in self._engines:
            client.stop()
        self._kept_outputs.stop()
        self._cache_upkeep.stop()
        self._guard.stop()
        self._quarantine.stop()
        self._heartbeat.stop()
        self._metrics.stop()

    # --- jobs ----------------------------------------------------------------------------------

    def deliver(self, job_ids: Iterable[UUID], on_settled: Callable[[], None]) -> Delivery:
        """Take in the jobs of a message; `on_settled` is called when the last is committed."""

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
        """Give back what a delivery still runs."""
        with self._lock:
            unfinished = [
                attempt for attempt, job in self._running.values() if job.delivery is delivery
            ]
        for attempt in unfinished:
            attempt.release()

    def figures(self) -> WorkerFigures:
        """What this worker does now, for whoever measures."""
        with self._lock:
            num_running, num_deliveries = len(self._running), len(self._deliveries)
        return WorkerFigures(
            is_ready=self._is_ready,
            leads=self._dispatcher.leads,
            num_running=num_running,
            num_deliveries=num_deliveries,
            num_unwritten=self._committer.num_unwritten,
            num_set_aside=quarantine.num_set_aside,
            engines=tuple(client.figures for client in self._engines),
        )

    def info(self) -> dict[str, Any]:
        """What this worker does now, JSON-able, for `inspect stats` and Flower."""
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
            "engines": [
                {
                    "model": alias,
                    "pid": client.pid,
                    "num_requests": client.num_held,
                    "num_restarts": client.num_restarts,
                    "max_rows": client.sized.spec.max_sequences,
                    "max_cache_tokens": client.sized.spec.max_cache_tokens,
                    **client.progress.to_json(),
                }
                for alias, replicas in self._clients.items()
                for client in replicas
            ],
        }

    def _start_jobs(self, claimed: list[ClaimedJob]) -> None:
        with self._kept_outputs.together():
            self._start_each(claimed)

    def _start_each(self, claimed: list[ClaimedJob]) -> None:
        for job in claimed:
            replicas = self._clients.get(job.model)
            if replicas is None:
                # A message went to the wrong queue; the dispatcher sends another.
                self._committer.put(Outcome.released(job.fence))
                job.delivery.settle([job.fence.job_id])
                continue
            client = min(replicas, key=lambda client: client.num_held)
            work = Work(
                job.fence.job_id,
                job.task,
                job.contract,
                client.card,
                self._request_ids,
                job.lane is Lane.INTERACTIVE,
                self._languages[job.model],
                job.tenant,
                self._maskers.masker_for(job.task, job.tenant),
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
                self._kept_outputs,
                self._cache,
                job.ids,
                self._guard,
                JobTrace.of(
                    job.fence.job_id,
                    job.batch_id,
                    job.traceparent,
                    job.claim_began_ns,
                    task=job.task,
                    model=job.model,
                    attempt=job.fence.attempt,
                ),
                self._client_of,
            )
            with self._lock:
                self._running[job.fence] = (attempt, job)
                draining = self._draining
            if draining:
                attempt.release()
            elif len(job.contract.get("text") or "") > MAX_CLAIMER_CHARACTERS:
                self._documents.submit(attempt.start)
            else:
                attempt.start()

    def _on_committed(self, outcomes: Sequence[Outcome], num_fenced: int) -> None:
        """After a commit, of the outcomes that changed a row: count them and say so."""
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
        except Exception:  # it is committed, and must not be written again for this
            log.exception("not counted")

    def _say_ended(self, outcome: Outcome, job: ClaimedJob, run_seconds: float) -> None:
        self._metrics.count_outcome(job.task, job.model, outcome, job.wait_seconds, run_seconds)
        if self.settings.log_format == "json":
            log.info(
                "attempt ended",
                extra={
                    **job.ids,
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
        return {"job_id": str(fence.job_id)} if running is None else running[1].ids

    def _client_of(self, alias: str) -> EngineClient | None:
        """The least busy engine of a model; None where this worker does not serve it."""
        replicas = self._clients.get(alias)
        return min(replicas, key=lambda client: client.num_held) if replicas else None

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        """After the commit: the messages of these jobs may be acked."""
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

    @property
    def _engines(self) -> list[EngineClient]:
        return [client for replicas in self._clients.values() for client in replicas]


def engine_spec(model: Model, threads: int, replica: int = 0) -> EngineSpec:
    """What the engine process must know of a model.

    threads: unless it names its own; replica: which of its processes it is
    """
    shared = {each.name: getattr(model, each.name) for each in fields(ModelSettings)}
    languages = dict.fromkeys(code for entry in model.languages for code in entry.split(">"))
    return EngineSpec(
        **{**shared, "threads": model.threads or threads},
        replica=replica,
        languages=tuple(languages),
    )
