"""A batch is published when it notifies, and without a notification at the next poll."""

import itertools
from pathlib import Path

import pytest
import redis

from db import JobState
from db.clock import seconds_from_now
from db.lane import Lane
from db.models import Leadership
from tasks import submit_batch
from tasks.generate import GenerateContract
from tests.running.producers import producing
from tests.running.workers import PATIENCE_SECONDS, Cluster, WorkerProcess, on_sqlite, until
from tests.samples.jobs import insert_jobs, job_row, set_columns
from tests.services.servers import ValkeyServer

# No test waits so long: what runs was published because of a notification.
SELDOM = {"dispatch_seconds": 10 * PATIENCE_SECONDS, "lead_seconds": 20 * PATIENCE_SECONDS}
REFUSAL = "notifications are refused"

numbers = itertools.count()


def submit(num_jobs: int) -> None:
    contract = GenerateContract.parse({"text": "a b", "max_new_tokens": 2})
    submit_batch(itertools.repeat(contract, num_jobs), name=f"batch {next(numbers)}")


def wait_until_listening(cluster: Cluster, num_workers: int = 1) -> None:
    """Until a worker leads, and all listen."""

    def leads() -> bool:
        with cluster.database.read() as session:
            return session.get(Leadership, "dispatcher") is not None

    until(leads, "a leader")
    channel = f"/{cluster.redis_url.rpartition('/')[2]}.tidemill.notifications"
    with redis.Redis.from_url(cluster.redis_url) as client:
        until(lambda: client.pubsub_numsub(channel)[0][1] == num_workers, "listening workers")


def test_a_batch_is_published_long_before_the_next_poll(producer: Cluster) -> None:
    producer.configure(worker=SELDOM)
    with producer.worker():
        wait_until_listening(producer)
        for number in range(1, 4):
            submit(20)
            producer.wait_until_finished(20 * number)
    assert producer.states() == {JobState.SUCCEEDED: 60}


@on_sqlite
def test_retried_jobs_are_published_long_before_the_next_poll(producer: Cluster) -> None:
    producer.configure(worker=SELDOM)
    with producer.worker():
        wait_until_listening(producer)
        rows = [
            job_row(model="fake", task="generate", lane=lane, state=JobState.FAILED)
            for lane in Lane
            for _ in range(20)
        ]
        ids = insert_jobs(producer.database, rows)
        ago = seconds_from_now(-60)
        set_columns(producer.database, ids, created_at=ago, finished_at=ago)
        done = producer.tidemill("retry", *map(str, ids))
        assert done.out == "40 jobs queued again\n", done.err
        producer.wait_until_finished(40)
    assert producer.states() == {JobState.SUCCEEDED: 40}


@on_sqlite
def test_any_worker_that_leads_is_notified(producer: Cluster) -> None:
    producer.configure(worker=SELDOM)
    with producer.worker(), producer.worker():
        wait_until_listening(producer, 2)
        submit(20)
        producer.wait_until_finished(20)


@on_sqlite
def test_jobs_submitted_before_a_worker_do_not_wait_for_its_second_poll(producer: Cluster) -> None:
    producer.configure(worker=SELDOM)
    submit(20)
    with producer.worker():
        producer.wait_until_finished(20)


@on_sqlite
def test_after_a_restart_of_redis_notifications_arrive_as_before(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with ValkeyServer.started(tmp_path_factory.mktemp("own")) as server:
        cluster.redis_url = server.new_database()
        cluster.configure(worker=SELDOM)
        config = cluster.folder / "tidemill.toml"
        with producing(cluster.database_url, cluster.redis_url, config), cluster.worker():
            wait_until_listening(cluster)
            submit(5)
            cluster.wait_until_finished(5)
            server.stop()
            submit(5)  # no worker is notified, but whoever listens again polls once
            server.start()
            cluster.wait_until_finished(10)
            wait_until_listening(cluster)
            submit(5)
            cluster.wait_until_finished(15)


def worker_without_the_channel(cluster: Cluster) -> WorkerProcess:
    """A worker on a Redis whose access list has Celery's channel and not ours."""
    # A subscription to a pattern, as Celery's are, is allowed by that very pattern only.
    pidbox = f"/{cluster.redis_url.rpartition('/')[2]}.celery.pidbox"
    with redis.Redis.from_url(cluster.redis_url) as client:
        client.execute_command("ACL", "SETUSER", "default", "resetchannels", f"&{pidbox}")
    worker = cluster.start_worker()
    worker.wait_until_ready()
    return worker


@on_sqlite
def test_without_the_channel_the_next_poll_finds_a_batch(
    cluster: Cluster, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with ValkeyServer.started(tmp_path_factory.mktemp("own")) as server:
        cluster.redis_url = server.new_database()
        cluster.configure()
        worker = worker_without_the_channel(cluster)
        config = cluster.folder / "tidemill.toml"
        with producing(cluster.database_url, cluster.redis_url, config):
            until(lambda: REFUSAL in worker.log, "a refusal")
            submit(20)
            cluster.wait_until_finished(20)
        worker.stop()
        assert worker.log.count(REFUSAL) == 1, "it is not said again and again"
