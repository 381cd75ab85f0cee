"""DatabaseWatch: figures of the database for Prometheus.

Only the leader reads them, and never during a scrape.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import get_args

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from db.audit import Head, head
from db.lane import Lane
from db.reading.figures import (
    EndedJobs,
    LaneBacklog,
    OpenBatches,
    find_backlog,
    find_ended_jobs,
    find_open_batches,
    num_live_workers,
)
from db.reading.quality import Drift, find_drift
from db.session import Database
from engine.protocol.task_names import TaskName
from tasks.canaries import Canary, canary_outcomes
from worker.periodic_thread import PeriodicThread

WATCH_SECONDS = 5.0
# The pause after a statement, as a multiple of its own time, which bounds its share of the
# database's time.
REST_FACTOR = 50.0
JUDGE_SECONDS = 600.0  # between two looks at quality, which changes by the day
NEWEST, REFERENCE = timedelta(days=1), timedelta(days=28)
DAY_SECONDS = 86_400.0  # between two hashes of the audit that are labels
STALE_SECONDS = 60.0  # figures that are older than this are not shown
OTHER = "other"  # a label for what the configuration does not name
MAX_CODES = 64  # of errors, that are labels; the rest are OTHER
TASKS = frozenset(get_args(TaskName))


@dataclass(frozen=True, slots=True)
class _Polled:
    """The figures of one poll, and its monotonic time."""

    at: float
    backlog: tuple[LaneBacklog, ...]
    batches: OpenBatches
    num_workers: int
    ended: tuple[EndedJobs, ...]
    audit_head: Head  # now


class DatabaseWatch:
    """Polls every few seconds while this worker leads; a scrape gets the latest figures."""

    def __init__(
        self,
        database: Database,
        leads: Callable[[], bool],
        models: Iterable[str],
        folder: Path,
        clock: Callable[[], float] = time.monotonic,
        canaries: Sequence[Canary] = (),
    ) -> None:
        """models: those of the configuration
        folder: on the disk that this worker writes to
        """
        self._database = database
        self._leads = leads
        self._models = tuple(models)
        self._folders = {"data": folder}
        if database.file is not None:
            self._folders["database"] = database.file.parent
        self._clock = clock
        self._canaries = canaries
        self._drift: tuple[Drift, ...] = ()
        self._num_alarming = 0
        self._judge_at = 0.0  # the next look at quality
        self._looked: _Polled | None = None
        self._ended: tuple[EndedJobs, ...] = ()
        self._daily_head: Head | None = None  # the audit's head at the first look of this day
        self._day_at = 0.0  # when it is replaced
        self._count_at = 0.0  # the next count of ended jobs
        self._thread = PeriodicThread("metrics", WATCH_SECONDS, self.look)

    def start(self) -> None:
        self._thread.start()
        self._thread.wake()

    def stop(self) -> None:
        self._thread.stop()

    def look(self) -> float | None:
        """Poll if this worker leads; returns the seconds until the next poll."""
        if not self._leads():
            self._looked = None
            return 1.0
        started_at = self._clock()
        with self._database.read() as session:
            backlog = tuple(find_backlog(session))
            batches = find_open_batches(session)
            num_workers = num_live_workers(session)
            counted_at = self._clock()
            if counted_at >= self._count_at:
                self._ended = tuple(find_ended_jobs(session))
                took_seconds = self._clock() - counted_at
                self._count_at = counted_at + max(WATCH_SECONDS, REST_FACTOR * took_seconds)
        audit_head = head(self._database)
        if self._clock() >= self._day_at:
            self._daily_head = audit_head
            self._day_at = self._clock() + DAY_SECONDS
        if self._clock() >= self._judge_at:
            self._judge()
        now = self._clock()
        self._looked = _Polled(now, backlog, batches, num_workers, self._ended, audit_head)
        return max(WATCH_SECONDS, REST_FACTOR * (counted_at - started_at))

    def _judge(self) -> None:
        """Compare the newest results with earlier ones, and canaries with expected answers."""
        started_at = self._clock()
        with self._database.read() as session:
            self._drift = tuple(find_drift(session, period=NEWEST, reference=REFERENCE))
        outcomes = canary_outcomes(self._canaries, self._database)
        self._num_alarming = sum(each.is_alarming for each in outcomes)
        now = self._clock()
        self._judge_at = now + max(JUDGE_SECONDS, REST_FACTOR * (now - started_at))

    def known(self, task: str, model: str) -> tuple[str, str]:
        """Labels for a task and a model, which a row may have from another configuration."""
        return task if task in TASKS else OTHER, model if model in self._models else OTHER

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._disks()
        looked = self._looked
        if looked is None or self._clock() - looked.at > max(
            STALE_SECONDS, 2 * (self._count_at - looked.at)
        ):
            return
        yield from self._of_backlog(looked.backlog)
        yield from _of_batches(looked.batches)
        yield GaugeMetricFamily(
            "tidemill_workers", "Workers that live.", value=float(looked.num_workers)
        )
        yield from self._of_jobs(looked.ended)
        yield from self._of_quality()
        yield from self._of_audit(looked.audit_head)

    def _disks(self) -> Iterator[Metric]:
        free = GaugeMetricFamily(
            "tidemill_disk_free_bytes", "Room on a disk that this worker uses.", labels=["use"]
        )
        size = GaugeMetricFamily(
            "tidemill_disk_size_bytes", "The size of that disk.", labels=["use"]
        )
        for use, folder in self._folders.items():
            try:
                usage = shutil.disk_usage(folder)
            except OSError:
                continue
            free.add_metric([use], usage.free)
            size.add_metric([use], usage.total)
        yield free
        yield size

    def _of_backlog(self, backlog: Iterable[LaneBacklog]) -> Iterator[Metric]:
        # What is empty is shown as 0: a line that ends says nothing.
        by_place = {(model, str(lane)): [0.0] * 4 for model in self._models for lane in Lane}
        for each in backlog:
            _, model = self.known("", each.model)
            figures = by_place.setdefault((model, each.lane), [0.0] * 4)
            figures[0] += each.num_queued
            figures[1] += each.num_running
            figures[2] += each.num_tokens
            figures[3] = max(figures[3], each.oldest_seconds)
        for index, (name, help_) in enumerate(
            (
                ("backlog_jobs", "Queued jobs."),
                ("running_jobs", "Running jobs."),
                ("backlog_tokens", "Tokens of queued jobs, to be read and written; estimated."),
                ("backlog_oldest_seconds", "Since the oldest queued job was submitted."),
            )
        ):
            family = GaugeMetricFamily(f"tidemill_{name}", help_, labels=["model", "lane"])
            for place, figures in by_place.items():
                family.add_metric(place, figures[index])
            yield family

    def _of_quality(self) -> Iterator[Metric]:
        # What is stable is shown as 0: a line that ends says nothing.
        changed = dict.fromkeys(self._models, 0.0)
        # Of those that share a label, the one that has changed most.
        indexes: dict[tuple[str, str, str], float] = {}
        for each in self._drift:
            task, model = self.known(each.task, each.model)
            key = task, model, each.signal
            indexes[key] = max(indexes.get(key, 0.0), each.index)
            changed[model] = changed.get(model, 0.0) + (each.verdict == "changed")
        index = GaugeMetricFamily(
            "tidemill_quality_index",
            "Population stability index of the last day's results against the weeks before.",
            labels=["task", "model", "signal"],
        )
        for labels, value in indexes.items():
            index.add_metric(labels, value)
        yield index
        family = GaugeMetricFamily(
            "tidemill_quality_changed_signals",
            "Signals of a model's results that have changed since the weeks before.",
            labels=["model"],
        )
        for model, num in changed.items():
            family.add_metric([model], num)
        yield family
        yield GaugeMetricFamily(
            "tidemill_canaries_alarming",
            "Canaries that failed or answered otherwise than they should.",
            value=float(self._num_alarming),
        )

    def _of_audit(self, now: Head) -> Iterator[Metric]:
        """The audit's last entry. Its hash is logged daily, so that a truncated chain shows."""
        yield GaugeMetricFamily(
            "tidemill_audit_entries",
            "The number of the audit's last entry; it never falls.",
            value=float(now.sequence),
        )
        family = GaugeMetricFamily(
            "tidemill_audit_head",
            "The number of the entry that was the last once in this day, and its hash.",
            labels=["hash"],
        )
        if self._daily_head is not None:
            family.add_metric([self._daily_head.hash], float(self._daily_head.sequence))
        yield family

    def _of_jobs(self, ended: Iterable[EndedJobs]) -> Iterator[Metric]:
        jobs: dict[tuple[str, str, str, str], float] = {}
        tokens: dict[tuple[str, str], list[float]] = {}
        codes: set[str] = set()
        for each in sorted(ended, key=lambda each: -each.num_jobs):
            task, model = self.known(each.task, each.model)
            code = each.error_code if each.error_code in codes or len(codes) < MAX_CODES else OTHER
            codes.add(code)
            key = task, model, each.state, code
            jobs[key] = jobs.get(key, 0.0) + each.num_jobs
            of_model = tokens.setdefault((task, model), [0.0, 0.0])
            of_model[0] += each.prompt_tokens
            of_model[1] += each.completion_tokens
        family = GaugeMetricFamily(
            "tidemill_jobs",
            "Finished jobs in the database.",
            labels=["task", "model", "state", "error_code"],
        )
        for key, num in jobs.items():
            family.add_metric(key, num)
        yield family
        for index, kind in enumerate(("prompt", "completion")):
            family = GaugeMetricFamily(
                f"tidemill_result_{kind}_tokens",
                f"The {kind} tokens of results in the database.",
                labels=["task", "model"],
            )
            for labels, nums in tokens.items():
                family.add_metric(labels, nums[index])
            yield family


def _of_batches(batches: OpenBatches) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "tidemill_open_batches", "Batches with unfinished jobs.", value=float(batches.num)
    )
    yield GaugeMetricFamily(
        "tidemill_oldest_open_batch_seconds",
        "Since the oldest of them was begun.",
        value=batches.oldest_seconds,
    )
    if batches.until_deadline_seconds is not None:
        yield GaugeMetricFamily(
            "tidemill_next_deadline_seconds",
            "Until the first deadline of an unfinished job.",
            value=batches.until_deadline_seconds,
        )
