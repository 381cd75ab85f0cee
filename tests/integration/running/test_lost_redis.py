"""Redis is the doorbell: losing it, or what it holds, loses nothing."""

import signal
import socket
import threading
from collections import Counter
from contextlib import suppress

import redis

from db import JobState
from tasks import generate, submit_batch
from tasks.generate import GenerateContract
from tests.running.producers import producing
from tests.running.workers import Cluster, on_sqlite, until
from tests.services.servers import ValkeyServer, free_port


@on_sqlite
def test_a_job_submitted_without_redis_is_kept_and_sent_out_later(cluster: Cluster) -> None:
    config = cluster.folder / "tidemill.toml"
    with producing(cluster.database_url, f"redis://127.0.0.1:{free_port()}/0", config):
        job = generate.submit(text="a b c")
    assert job.is_new
    assert cluster.job(job.id).state == JobState.QUEUED
    assert cluster.job(job.id).published_at is None
    with cluster.worker():
        cluster.wait_until_finished(1)
    assert cluster.states() == {JobState.SUCCEEDED: 1}


@on_sqlite
def test_a_submit_gives_up_a_redis_that_says_nothing(cluster: Cluster) -> None:
    """It waited for a minute: as long as a worker may wait for a message, and twice."""
    config = cluster.configure()
    ends: list[str] = []

    def say_nothing(client: socket.socket) -> None:
        with client:
            client.settimeout(20)
            try:
                while client.recv(65536):
                    pass
                ends.append("theirs")
            except TimeoutError:
                ends.append("ours")

    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=say_nothing, args=server.accept()[:1]).start()

        threading.Thread(target=accept, daemon=True).start()
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        with producing(cluster.database_url, url, config):
            job = generate.submit(text="a b c")
        until(lambda: ends, "the end of a connection")
    assert cluster.job(job.id).state == JobState.QUEUED
    assert set(ends) == {"theirs"}


@on_sqlite
def test_when_redis_loses_everything_every_job_is_run(producer: Cluster) -> None:
    producer.configure(fake_step_seconds=0.005, max_sequences=4)
    contracts = [GenerateContract.parse({"text": "a b", "max_new_tokens": 20}) for _ in range(40)]
    with producer.worker() as worker, redis.Redis.from_url(producer.redis_url) as client:
        submit_batch(iter(contracts), name="night")
        producer.wait_for(JobState.SUCCEEDED, 4)
        worker.pause(producer.database_url)
        for _ in range(20):
            generate.submit(text="a b", max_new_tokens=2)
        assert client.llen("tidemill.fake.interactive") > 0, "messages that nobody has taken"
        client.flushall()
        worker.process.send_signal(signal.SIGCONT)
        producer.wait_until_finished(60)
    assert producer.states() == {JobState.SUCCEEDED: 60}
    assert Counter(producer.results_per_job().values()) == {1: 60}


@on_sqlite
def test_running_jobs_finish_while_redis_is_away_and_the_others_afterwards(
    cluster: Cluster, tmp_path_factory
) -> None:
    with ValkeyServer.started(tmp_path_factory.mktemp("own")) as server:
        cluster.redis_url = server.new_database()
        cluster.configure(fake_step_seconds=0.05, max_sequences=4)
        config = cluster.folder / "tidemill.toml"
        with (
            producing(cluster.database_url, cluster.redis_url, config),
            cluster.worker() as worker,
        ):
            running = [generate.submit(text="a b", max_new_tokens=30) for _ in range(4)]
            cluster.wait_for(JobState.RUNNING, 4)
            server.stop()
            cluster.wait_for(JobState.SUCCEEDED, 4)
            later = generate.submit(text="a b", max_new_tokens=2)
            until(lambda: "part=dispatcher" in worker.log, "Redis is missed")
            server.start()
            cluster.wait_until_finished(5)
    assert cluster.job(later.id).state == JobState.SUCCEEDED
    assert {cluster.job(job.id).attempt for job in running} == {1}
