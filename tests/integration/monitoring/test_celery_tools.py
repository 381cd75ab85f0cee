"""Celery's own tools show a worker's true state."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery

from db import JobState
from db.models import Job
from db.queries.jobs import cancel_retry
from tasks import generate
from tests.running.workers import BIN, PATIENCE_SECONDS, Cluster, on_sqlite, until

pytestmark = on_sqlite
QUEUES = ["celery", "tidemill.fake.interactive", "tidemill.fake.bulk"]


@contextmanager
def operator(cluster: Cluster) -> Iterator[Celery]:
    """An app of its own, since ours keeps the connections of the first Redis."""
    app = Celery(broker=cluster.redis_url, set_as_current=False)
    yield app
    app.close()


def inspect(cluster: Cluster, what: str) -> Any:
    """The reply of the only worker."""
    name = cluster.started[-1].name
    with operator(cluster) as app:
        told = getattr(app.control.inspect([name], timeout=PATIENCE_SECONDS), what)()
    return told[name]


@pytest.fixture
def busy(producer: Cluster) -> Cluster:
    """A worker whose models are so slow that jobs stay running."""
    producer.configure(worker={"drain_seconds": 0.2}, fake_step_seconds=0.05)
    return producer


def queues(cluster: Cluster) -> list[str]:
    return [queue["name"] for queue in inspect(cluster, "active_queues")]


def test_status_inspect_and_stats_while_jobs_run_and_after(busy: Cluster) -> None:
    busy.program = (str(BIN / "celery"),)  # started directly, with Celery's own command
    with busy.worker() as worker:
        assert queues(busy) == QUEUES
        assert f"{worker.name}: OK" in busy.celery("status", "-d", worker.name)
        assert inspect(busy, "active") == []

        submitted = [
            generate.submit(text=f"a b {number}", max_new_tokens=10_000) for number in range(3)
        ]
        busy.wait_for(JobState.RUNNING, 3)

        (active,) = json.loads(
            busy.celery("inspect", "active", "--json", "-d", worker.name)
        ).values()
        assert active == inspect(busy, "active")
        assert [message["name"] for message in active] == ["tasks.run_jobs"] * 3
        assert {message["worker_pid"] for message in active} == {worker.pid}
        (stats,) = json.loads(busy.celery("inspect", "stats", "--json", "-d", worker.name)).values()
        assert stats["total"] == {"tasks.run_jobs": 3}
        assert stats["pool"]["implementation"] == "worker.celery.pool:EnginePool"
        told = stats["pool"]["tidemill"]
        assert told["num_running_jobs"] == told["num_deliveries"] == 3
        (engine,) = told["engines"]
        assert engine["model"] == "fake"
        assert engine["num_requests"] == 3
        assert engine["pid"] in {child.pid for child in worker.children}

        with busy.database.write() as session:
            session.execute(cancel_retry.cancel_jobs(Job.tenant == "default"))
        until(lambda: inspect(busy, "active") == [], "nothing active")
        told = inspect(busy, "stats")["pool"]["tidemill"]
        assert (told["num_running_jobs"], told["num_deliveries"]) == (0, 0)
        assert {busy.job(job.id).state for job in submitted} == {JobState.CANCELLED}


def test_each_model_has_its_own_queues(busy: Cluster) -> None:
    with busy.worker():
        assert queues(busy) == QUEUES


def test_a_message_that_is_revoked_and_terminated_gives_its_job_back(busy: Cluster) -> None:
    with busy.worker():
        generate.submit(text="a b c", max_new_tokens=10_000)
        busy.wait_for(JobState.RUNNING)
        (message,) = inspect(busy, "active")
        with operator(busy) as app:
            app.control.revoke(message["id"], terminate=True)
        # A released job is claimed again: the next attempt of the same job.
        until(
            lambda: {busy.job(job_id).attempt for job_id in busy.results_per_job()} == {2},
            "a second attempt",
        )


def test_an_unknown_message_is_dropped_and_the_worker_goes_on(busy: Cluster) -> None:
    busy.configure()
    with busy.worker() as worker:
        with operator(busy) as app:
            for arguments in ([["no uuid"]], [7], [], [{"a": 1}], [[None]]):
                app.send_task("tasks.run_jobs", arguments, queue="tidemill.fake.bulk")
        until(lambda: inspect(busy, "stats")["total"] == {"tasks.run_jobs": 5}, "all are taken")
        until(lambda: inspect(busy, "active") == [], "nothing active")
        assert worker.log.count("malformed message dropped") == 5
        assert generate.submit(text="a b").wait(60).state == JobState.SUCCEEDED
        assert "Traceback" not in worker.log
