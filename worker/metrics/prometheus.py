"""Prometheus metrics: counted at events, or read at a scrape.

Label values are few and known beforehand: tasks, models of the configuration, states, lanes, error
codes; never a tenant, batch or job.

Counters belong to this process and rise after the commit that they count, so they never run ahead
of the database. They end with the process; `tidemill_jobs`, which the leader reads from the
database, stays right whatever has died.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector

from db.outcome import Outcome
from db.states import JobState
from engine.protocol.progress import STEP_SECONDS
from tasks.quarantine import EndedJob
from worker.metrics.database_watch import DatabaseWatch
from worker.metrics.figures import EngineFigures, WorkerFigures
from worker.metrics.metrics import CacheResult, Metrics

log = logging.getLogger(__name__)

WAIT_SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600)
RUN_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 15, 60, 300, 1800)


class PrometheusMetrics(Metrics):
    """The registry of this worker, and the HTTP server for it.

    If the port is taken, the worker logs that and goes on without metrics.
    """

    def __init__(
        self,
        host: str,
        port: int,
        observe: Callable[[], WorkerFigures],
        database: DatabaseWatch,
    ) -> None:
        self._host, self._port = host, port
        self._database = database
        self._server: tuple[WSGIServer, Thread] | None = None
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.registry.register(_Observed(observe))
        self.registry.register(database)

        def counter(name: str, help_: str, *labels: str) -> Counter:
            return Counter(f"tidemill_{name}", help_, labels, registry=self.registry)

        def histogram(name: str, help_: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(
                f"tidemill_{name}",
                help_,
                ("task", "model"),
                registry=self.registry,
                buckets=buckets,
            )

        self._ended = counter(
            "jobs_ended",
            "Jobs that this worker ended, error_code empty where they succeeded.",
            *("task", "model", "state", "error_code"),
        )
        self._wait = histogram("job_wait_seconds", "From submission to last start.", WAIT_SECONDS)
        self._run = histogram("job_run_seconds", "What the last attempt took.", RUN_SECONDS)
        of_a_model = ("task", "model")
        self._prompt_tokens = counter("prompt_tokens", "Tokens read for results.", *of_a_model)
        self._completion_tokens = counter(
            "completion_tokens", "Tokens written into results.", *of_a_model
        )
        self._retries = counter(
            "retries",
            "Attempts that failed and are to be made again.",
            *of_a_model,
            "error_code",
        )
        self._releases = counter(
            "releases", "Attempts that were given back unfinished, unblamed.", *of_a_model
        )
        self._cache = counter(
            "cache_lookups", "Answers looked for in the cache.", *of_a_model, "result"
        )
        self._published = counter(
            "published_jobs", "Jobs sent to their queue by this dispatcher.", "model", "lane"
        )
        self._fenced = counter("fenced_outcomes", "Outcomes of jobs that were another's by then.")
        self._lost = counter(
            "leases_lost", "Attempts given up: cancelled, past their deadline, or taken over."
        )
        self._expired_leases = counter(
            "leases_expired", "Jobs of silent workers that this leader put back in line."
        )

    # --- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        try:
            self._server = start_http_server(self._port, self._host, self.registry)
        except OSError as error:
            log.error(
                "no metrics: the port cannot be listened on",
                extra={"host": self._host, "port": self._port, "error": error.strerror},
            )
            return
        self._database.start()
        log.info("metrics served", extra={"host": self._host, "port": self._port})

    def stop(self) -> None:
        if self._server is None:
            return
        (server, thread), self._server = self._server, None
        self._database.stop()
        server.shutdown()
        server.server_close()
        thread.join()

    # --- events --------------------------------------------------------------------------------

    def count_outcome(
        self, task: str, model: str, outcome: Outcome, wait_seconds: float, run_seconds: float
    ) -> None:
        code = outcome.error_code or ""
        task, model = self._database.known(task, model)
        if outcome.state is JobState.QUEUED:
            if outcome.blamed:
                self._retries.labels(task, model, code).inc()
            else:
                self._releases.labels(task, model).inc()
            return
        self._ended.labels(task, model, outcome.state.value, code).inc()
        self._wait.labels(task, model).observe(max(wait_seconds, 0.0))
        self._run.labels(task, model).observe(run_seconds)
        if outcome.answer is not None:
            self._prompt_tokens.labels(task, model).inc(outcome.answer.prompt_tokens)
            self._completion_tokens.labels(task, model).inc(outcome.answer.completion_tokens)

    def count_refused(self, jobs: Iterable[EndedJob]) -> None:
        for job in jobs:
            task, model = self._database.known(job.task, "")
            self._ended.labels(task, model, job.state.value, job.error_code or "").inc()

    def count_fenced(self, num: int) -> None:
        self._fenced.inc(num)

    def count_lost(self, num: int) -> None:
        self._lost.inc(num)

    def count_expired_leases(self, num: int) -> None:
        self._expired_leases.inc(num)

    def count_expired(self, jobs: Iterable[tuple[str, str]]) -> None:
        for task, model in jobs:
            task, model = self._database.known(task, model)
            self._ended.labels(task, model, JobState.EXPIRED.value, "deadline_passed").inc()

    def count_published(self, model: str, lane: str, num: int) -> None:
        self._published.labels(model, str(lane)).inc(num)

    def count_cache(self, task: str, model: str, result: CacheResult) -> None:
        self._cache.labels(task, model, result).inc()


class _Observed:
    """Gauges of a worker, read at each scrape."""

    def __init__(self, observe: Callable[[], WorkerFigures]) -> None:
        self._observe = observe

    def describe(self) -> list[Metric]:
        """Return no metrics; otherwise Prometheus's client would scrape once to register."""
        return []

    def collect(self) -> Iterator[Metric]:
        worker = self._observe()
        for name, help_, value in (
            ("worker_ready", "Whether this worker's models are loaded.", worker.is_ready),
            ("worker_leads", "Whether this worker's dispatcher leads.", worker.leads),
            ("worker_running_jobs", "Jobs that run here.", worker.num_running),
            ("worker_messages", "Messages taken and not acked.", worker.num_deliveries),
            ("worker_unwritten_outcomes", "Outcomes to be committed.", worker.num_unwritten),
        ):
            yield GaugeMetricFamily(f"tidemill_{name}", help_, value=float(value))
        yield CounterMetricFamily(
            "tidemill_messages_set_aside",
            "Messages that could not be taken.",
            value=float(worker.num_set_aside),
        )
        yield from _engine_gauges(worker.engines)
        yield from _engine_counters(worker.engines)
        yield _step_seconds(worker.engines)


OF_AN_ENGINE = ("model", "replica")


def _labels(engine: EngineFigures) -> tuple[str, str]:
    return engine.model, str(engine.replica)


def _engine_gauges(engines: Iterable[EngineFigures]) -> Iterator[Metric]:
    read: tuple[tuple[str, str, Callable[[EngineFigures], float | None]], ...] = (
        ("ready", "Whether the process has its model loaded.", lambda each: each.is_ready),
        ("requests", "Requests sent and not answered.", lambda each: each.num_held),
        ("rows", "Rows taken, of tidemill_engine_max_rows.", lambda each: each.progress.num_rows),
        ("max_rows", "Rows that a step may have.", lambda each: each.max_rows),
        (
            "kv_cache_tokens",
            "Places taken in the KV cache, of tidemill_engine_max_kv_cache_tokens.",
            lambda each: each.progress.num_cache_tokens,
        ),
        ("max_kv_cache_tokens", "Places of the KV cache.", lambda each: each.max_cache_tokens),
    )
    for name, help_, figure in read:
        family = GaugeMetricFamily(f"tidemill_engine_{name}", help_, labels=OF_AN_ENGINE)
        for engine in engines:
            if (value := figure(engine)) is not None:
                family.add_metric(_labels(engine), float(value))
        yield family


def _engine_counters(engines: Iterable[EngineFigures]) -> Iterator[Metric]:
    # The process's own totals, which begin anew with a process; so Prometheus expects it.
    read: tuple[tuple[str, str, Callable[[EngineFigures], float]], ...] = (
        ("restarts", "Times that the process was started again.", lambda each: each.num_restarts),
        (
            "row_steps",
            "Rows of every step, added up: by steps, their mean.",
            lambda each: each.progress.num_row_steps,
        ),
        (
            "prompt_tokens",
            "Tokens of prompts begun.",
            lambda each: each.progress.num_prompt_tokens,
        ),
        (
            "prefix_tokens",
            "Tokens of these prompts that another prompt began with.",
            lambda each: each.progress.num_found_tokens,
        ),
        (
            "completion_tokens",
            "Tokens of answers finished.",
            lambda each: each.progress.num_completion_tokens,
        ),
    )
    for name, help_, figure in read:
        family = CounterMetricFamily(f"tidemill_engine_{name}", help_, labels=OF_AN_ENGINE)
        for engine in engines:
            family.add_metric(_labels(engine), float(figure(engine)))
        yield family


def _step_seconds(engines: Iterable[EngineFigures]) -> Metric:
    family = HistogramMetricFamily(
        "tidemill_engine_step_seconds", "The time of a step.", labels=OF_AN_ENGINE
    )
    bounds = [*map(str, STEP_SECONDS), "+Inf"]
    for engine in engines:
        counts = engine.progress.step_counts or (0,) * len(bounds)
        buckets: list[Any] = list(zip(bounds, map(float, accumulate(counts)), strict=True))
        family.add_metric(_labels(engine), buckets, sum_value=engine.progress.busy_seconds)
    return family
