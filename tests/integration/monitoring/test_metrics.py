"""The figures that Prometheus reads, beside those of the database, after faults."""

import socket
import threading
import urllib.error

import pytest
from sqlalchemy import func, select

from db import JobState
from db.clock import seconds_from_now
from db.models import AttemptRow, Job, Result
from db.reading.figures import find_backlog, find_open_batches
from db.session import Database
from tasks import generate, summarize
from tasks.app import app
from tests.running.scrapes import Scrape
from tests.running.serving import serving
from tests.running.workers import PATIENCE_SECONDS, TAKEN_UP_SOON, Cluster, on_sqlite, until
from tests.samples.jobs import insert_jobs, job_row, set_columns
from tests.services.servers import free_port
from worker.settings import Settings

# Of a job, a batch or whoever sent it: there is no end of them.
UNBOUNDED = {"job", "job_id", "batch", "batch_id", "tenant", "custom_id", "attempt", "owner"}


def ended_by_sql(cluster: Cluster) -> dict[tuple[str, ...], float]:
    """The finished jobs, by the labels that a figure of theirs has."""
    with cluster.database.read() as session:
        rows = session.execute(
            select(Job.task, Job.model, Job.state, func.coalesce(Job.error_code, ""), func.count())
            .where(Job.finished_at.is_not(None))
            .group_by(Job.task, Job.model, Job.state, Job.error_code)
        ).all()
    # What was refused has no model, and may have no task.
    return {
        (task.replace("unknown", "other"), model or "other", state, code): num
        for task, model, state, code, num in rows
    }


def tokens_by_sql(cluster: Cluster) -> tuple[int, int]:
    with cluster.database.read() as session:
        row = session.execute(
            select(func.sum(Result.prompt_tokens), func.sum(Result.completion_tokens))
        ).one()
    return int(row[0]), int(row[1])


ENDED = ("task", "model", "state", "error_code")
REFUSED = ("invalid_contract", "unknown_model", "unknown_task")


def test_figures_agree_with_the_database_after_a_worker_died(producer: Cluster) -> None:
    """The counters of all workers, each at its last scrape, come to what SQL counts; what the
    leader reads from SQL is right by itself, whoever died."""
    first_port, second_port = free_port(), free_port()
    settings = {**TAKEN_UP_SOON, "retry_seconds": 0.05}
    producer.configure(
        worker={**settings, "metrics_port": first_port},
        fake_fail_on="broken",
        fake_crash_on="fatal",
        fake_out_of_memory_on="starved",
        fake_step_seconds=0.01,
        max_input_tokens=50,
    )
    with producer.worker() as first:
        for text in ("a b c", "broken", "starved", "d e"):
            generate.submit(text=text, max_new_tokens=5).wait(90)
        summarize.submit(text="word " * 80, strategy="fail").wait(90)
        generate.submit(text="fatal", max_new_tokens=5).wait(90)
        app.send_task("tasks.generate", kwargs={"text": "a b", "max_new_tokens": -1})
        app.send_task("tasks.summarize", kwargs={"text": "a", "model": "nobody's"})
        app.send_task("tasks.nobody's", queue="celery", kwargs={"text": "a b"})
        app.send_task("tasks.generate", args=["a b"])
        app.send_task("tasks.generate", kwargs={"text": "d"})
        producer.wait_until_finished(11)
        until(
            lambda: (
                Scrape.of(first_port).by("tidemill_jobs_ended_total", *ENDED)
                == ended_by_sql(producer)
            ),
            "the first worker's counters",
        )
        # None of these ends before the worker dies, so its counters stay as they are.
        running = [generate.submit(text="long " * 20, max_new_tokens=2000).id for _ in range(3)]
        producer.wait_for(JobState.RUNNING, 3)
        last = Scrape.of(first_port)
        first.kill()
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        Scrape.of(first_port)
    producer.configure(
        worker={**settings, "metrics_port": second_port},
        fake_fail_on="broken",
        max_input_tokens=50,
    )
    (late,) = insert_jobs(producer.database, [job_row(model="fake", lane="bulk")])
    set_columns(producer.database, [late], deadline=seconds_from_now(-1))
    with producer.worker():
        producer.wait_until_finished(11 + len(running) + 1)
        by_sql = ended_by_sql(producer)
        now = until(
            lambda: (
                (scrape := Scrape.of(second_port)).by("tidemill_jobs", *ENDED) == by_sql and scrape
            ),
            "the leader's figures",
        )
    assert {(state, code) for _, _, state, code in by_sql} == {
        ("succeeded", ""),
        ("failed", "generation_failed"),
        ("failed", "prompt_too_long"),
        ("failed", "engine_crash"),
        ("failed", "out_of_memory"),
        ("expired", "deadline_passed"),
        *(("failed", code) for code in REFUSED),
    }
    counted = last.by("tidemill_jobs_ended_total", *ENDED)
    for key, num in now.by("tidemill_jobs_ended_total", *ENDED).items():
        counted[key] = counted.get(key, 0.0) + num
    assert counted == by_sql
    for index, kind in enumerate(("prompt", "completion")):
        of_workers = sum(each.total(f"tidemill_{kind}_tokens_total") for each in (last, now))
        assert of_workers == tokens_by_sql(producer)[index]
        assert now.total(f"tidemill_result_{kind}_tokens") == tokens_by_sql(producer)[index]
    assert last.total("tidemill_engine_restarts_total") >= 1
    assert last.total("tidemill_retries_total", error_code="out_of_memory") == 2
    assert now.total("tidemill_leases_expired_total") == len(running)
    num_run = sum(num for key, num in by_sql.items() if key[2] != "expired" and key[1] == "fake")
    for name in ("wait", "run"):
        assert (
            sum(each.total(f"tidemill_job_{name}_seconds_count") for each in (last, now)) == num_run
        )
    assert not UNBOUNDED & {name for sample in now.samples for name in sample.labels}


def test_a_job_that_cannot_begin_here_is_counted_as_given_back(producer: Cluster) -> None:
    """Its message came by the queue of another model; that it was given back is an attempt."""
    port = free_port()
    (job_id,) = insert_jobs(producer.database, [job_row(model="another")])
    settings = Settings(metrics_port=port)
    with serving(producer, settings=settings) as served:
        settled = threading.Event()
        served.worker.deliver([job_id], settled.set)
        assert settled.wait(PATIENCE_SECONDS)
        scrape = Scrape.of(port)
        assert scrape.by("tidemill_releases_total", "task", "model") == {("summarize", "other"): 1}
        assert scrape.total("tidemill_jobs_ended_total") == 0
        assert served.details(job_id).job.state is JobState.QUEUED
    with producer.database.read() as session:
        attempts = session.execute(select(AttemptRow.next_state, AttemptRow.error_code)).all()
    assert attempts == [("queued", None)]


@on_sqlite
def test_the_engines_own_figures_cross_the_pipe(producer: Cluster) -> None:
    port = free_port()
    producer.configure(
        worker={"metrics_port": port},
        fake_step_seconds=0.02,
        max_sequences=8,
        max_cache_tokens=4096,
    )
    with producer.worker():
        jobs = [generate.submit(text=f"a b {number}", max_new_tokens=150) for number in range(3)]
        busy = until(
            lambda: (scrape := Scrape.of(port)).total("tidemill_engine_rows") == 3 and scrape,
            "three rows",
        )
        assert busy.total("tidemill_engine_max_rows") == 8
        assert busy.total("tidemill_engine_max_kv_cache_tokens") == 4096
        assert busy.total("tidemill_worker_running_jobs") == 3
        # The leader's figure is of its last look, which may have been between two of them.
        assert busy.total("tidemill_running_jobs", model="fake", lane="interactive") <= 3
        for each in jobs:
            each.wait(90)
        idle = until(
            lambda: (scrape := Scrape.of(port)).total("tidemill_engine_rows") == 0 and scrape,
            "no rows",
        )
    num_steps = idle.total("tidemill_engine_step_seconds_count")
    assert num_steps >= 150
    assert idle.total("tidemill_engine_step_seconds_bucket", le="0.01") == 0, "a step takes 20 ms"
    assert idle.total("tidemill_engine_step_seconds_sum") >= 0.02 * num_steps
    assert num_steps < idle.total("tidemill_engine_row_steps_total") <= 3 * num_steps


@on_sqlite
def test_a_taken_metrics_port_stops_the_metrics_and_not_the_worker(producer: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        producer.configure(worker={"metrics_port": port})
        with producer.worker() as worker:
            assert generate.submit(text="a b c").wait(90).state is JobState.SUCCEEDED
    assert f"port={port}" in worker.log
    assert "no metrics: the port cannot be listened on" in worker.log


def test_the_backlog_counts_waiting_jobs_by_model_and_lane(database: Database) -> None:
    insert_jobs(database, [job_row(num_characters=400) for _ in range(3)])
    insert_jobs(database, [job_row(lane="interactive", num_characters=40)])
    insert_jobs(database, [job_row(model="other", num_characters=40)])
    with database.read() as session:
        backlog = {(each.model, each.lane): each for each in find_backlog(session)}
        open_batches = find_open_batches(session)
    assert {key: each.num_queued for key, each in backlog.items()} == {
        ("reports", "bulk"): 3,
        ("reports", "interactive"): 1,
        ("other", "bulk"): 1,
    }
    assert backlog["reports", "bulk"].num_tokens > backlog["reports", "interactive"].num_tokens > 0
    assert backlog["reports", "bulk"].oldest_seconds >= 0
    assert (open_batches.num, open_batches.until_deadline_seconds) == (0, None)
