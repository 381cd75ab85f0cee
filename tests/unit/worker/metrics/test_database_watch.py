"""The labels of the leader's figures, whatever the database contains."""

from collections import Counter
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from db import audit
from db.clock import seconds_from_now
from db.session import Database
from tasks.configuration import settings
from tasks.configuration.catalog import Catalog
from tests.running.scrapes import Scrape
from tests.samples.jobs import insert_jobs, job_row, set_columns
from worker.metrics.database_watch import DAY_SECONDS, MAX_CODES, DatabaseWatch
from worker.metrics.prometheus import PrometheusMetrics
from worker.worker import Worker

ODD = '"\\\n\u202e{}'


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(database: Database, tmp_path: Path, clock: Clock) -> DatabaseWatch:
    return DatabaseWatch(database, lambda: True, ["reports"], tmp_path, clock)


def scraped(watch: DatabaseWatch) -> Scrape:
    watch.look()
    registry = CollectorRegistry()
    registry.register(watch)
    return Scrape(generate_latest(registry).decode())


def test_a_thousand_tenants_models_and_codes_are_few_labels(
    database: Database, watch: DatabaseWatch
) -> None:
    rows = [
        job_row(
            tenant=f"tenant {number}{ODD}",
            model=f"model {number}{ODD}",
            task=f"task {number}",
            state="failed",
            error_code=f"code_{number}",
        )
        for number in range(1000)
    ]
    ended = insert_jobs(database, rows)
    set_columns(database, ended, finished_at=seconds_from_now(-60))
    insert_jobs(database, [job_row(model=f"model {number}{ODD}") for number in range(1000)])
    scrape = scraped(watch)
    assert scrape.total("tidemill_jobs") == 1000
    assert scrape.total("tidemill_backlog_jobs") == 1000
    assert {sample.labels["model"] for sample in scrape.samples if "model" in sample.labels} == {
        "reports",
        "other",
    }
    codes = {
        sample.labels["error_code"] for sample in scrape.samples if "error_code" in sample.labels
    }
    assert len(codes) <= MAX_CODES + 1
    assert "tenant" not in scrape.text


def test_a_leader_names_the_models_that_other_workers_serve(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = '[models.{}]\ncheckpoint = "fake"\nengine = "fake"\ntasks = ["generate"]\n'
    config = tmp_path / "tidemill.toml"
    config.write_text(
        f"{model.format('here')}{model.format('elsewhere')}[worker]\nmetrics_port = 1"
    )
    monkeypatch.setattr(settings, "catalog", lambda: Catalog.load(config))
    monkeypatch.setattr(settings, "database", lambda: database)
    monkeypatch.setattr(settings, "served_models", lambda: ("here",))
    worker = Worker.from_configuration(lambda: None)
    assert isinstance(worker._metrics, PrometheusMetrics)
    watch = worker._metrics._database
    monkeypatch.setattr(watch, "_leads", lambda: True)
    insert_jobs(database, [job_row(model=each) for each in ("here", "elsewhere", "nowhere")])
    backlog = scraped(watch).by("tidemill_backlog_jobs", "model")
    assert backlog == {("here",): 1, ("elsewhere",): 1, ("other",): 1}


def test_no_series_is_there_twice(database: Database, watch: DatabaseWatch) -> None:
    for model in ("gone", "gone too"):
        for days_ago, num in ((0.5, 60), (10.0, 60)):
            ids = insert_jobs(database, [job_row(model=model, state="failed") for _ in range(num)])
            set_columns(database, ids, finished_at=seconds_from_now(-days_ago * DAY_SECONDS))
    samples = scraped(watch).samples
    seen = Counter((each.name, tuple(sorted(each.labels.items()))) for each in samples)
    assert [each for each, num in seen.items() if num > 1] == []
    assert any(each.name == "tidemill_quality_index" for each in samples)


def test_the_end_of_the_audit_is_a_figure_and_its_hash_a_label_for_a_day(
    database: Database, watch: DatabaseWatch, clock: Clock
) -> None:
    def append() -> audit.Head:
        with database.write() as session:
            audit.append(session, audit.Act.BACKUP, {})
        return audit.head(database)

    first = append()
    scrape = scraped(watch)
    assert scrape.by("tidemill_audit_head", "hash") == {(first.hash,): first.sequence}
    second = append()
    clock.now += DAY_SECONDS / 2
    scrape = scraped(watch)
    assert scrape.total("tidemill_audit_entries") == second.sequence
    assert scrape.by("tidemill_audit_head", "hash") == {(first.hash,): first.sequence}
    assert audit.verify(database, first.hash).faults == ()
    clock.now += DAY_SECONDS
    assert scraped(watch).by("tidemill_audit_head", "hash") == {(second.hash,): second.sequence}
