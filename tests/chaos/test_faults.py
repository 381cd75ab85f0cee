"""Faults that a rain of them would seldom hit just so."""

import signal
import socket
from urllib.parse import urlsplit

import redis

from db.session import Database
from db.states import JobState
from tests.chaos.postgres import ChaosPostgres
from tests.chaos.proxy import Proxy
from tests.chaos.run import SHORT, Run
from tests.jobs import insert_job
from tests.workers import on_sqlite, until

NUM_JOBS = 40


def valkey_port(run: Run) -> int:
    port = urlsplit(run.cluster.redis_url).port
    assert port is not None
    return port


@on_sqlite
def test_a_job_submitted_while_redis_is_full_is_kept_and_sent_out_later(run: Run) -> None:
    with redis.Redis.from_url(run.cluster.redis_url) as client, run.cluster.worker() as worker:
        client.config_set("maxmemory", 1)
        try:
            run.submit_one()
            until(lambda: "part=dispatcher error=OutOfMemoryError" in worker.log, "Redis is full")
        finally:
            client.config_set("maxmemory", 0)
        run.wait_until_finished()
    assert run.complaints() == []


@on_sqlite
def test_a_worker_to_which_a_full_redis_gives_a_message_goes_on(run: Run) -> None:
    with redis.Redis.from_url(run.cluster.redis_url) as client, run.cluster.worker() as worker:
        worker.process.send_signal(signal.SIGSTOP)
        run.submit_one()
        client.config_set("maxmemory", 1)
        try:
            worker.process.send_signal(signal.SIGCONT)
            # kombu takes it off the list, and cannot write down that it has it.
            until(lambda: "Traceback" in worker.log or worker.process.poll() is not None, "that")
        finally:
            client.config_set("maxmemory", 0)
        run.wait_until_finished()
        assert worker.process.poll() is None, worker.log
    assert run.complaints() == []


@on_sqlite
def test_a_leader_that_cannot_reach_redis_leaves_the_lead_to_one_that_can(run: Run) -> None:
    run.cluster.configure(worker={**SHORT, "lead_seconds": 3600})
    with Proxy.started(valkey_port(run)) as proxy:
        path = urlsplit(run.cluster.redis_url).path
        url = f"redis://127.0.0.1:{proxy.port}{path}"
        with run.cluster.worker(TIDEMILL_REDIS_URL=url) as leader:
            run.submit(1)
            run.wait_until_finished()
            with run.cluster.worker():
                proxy.cut()
                run.submit(NUM_JOBS)
                run.wait_until_finished()
            proxy.heal()
            leader.process.send_signal(signal.SIGTERM)
            assert leader.wait() == 0
    assert run.complaints() == []


def test_a_leader_that_dies_is_followed_by_another(run: Run) -> None:
    with run.cluster.worker() as leader:
        run.submit(1)
        run.wait_until_finished()
        with run.cluster.worker():
            run.kill(leader)
            run.submit(NUM_JOBS)
            run.wait_until_finished()
    assert run.cluster.states() == {JobState.SUCCEEDED: NUM_JOBS + 1}
    assert run.complaints() == []


def test_a_connection_to_a_server_that_vanished_is_given_up_within_a_minute() -> None:
    with ChaosPostgres.started() as server:
        database = Database(server.url(server.new_database()))
        raw = database.engine.raw_connection()
        with socket.socket(fileno=raw.driver_connection.fileno()) as opened:
            idle = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            interval = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
            count = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
            unanswered_ms = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            opened.detach()
        raw.close()
        database.close()
    assert idle + interval * count <= 60
    assert 0 < unanswered_ms <= 60_000


@on_sqlite
def test_a_job_that_this_version_does_not_know_fails_and_the_worker_goes_on(run: Run) -> None:
    unknown = insert_job(run.cluster.database, task="dream", model="fake")
    run.num_submitted += 1
    with run.cluster.worker():
        run.submit(NUM_JOBS)
        run.wait_until_finished()
    job = run.cluster.job(unknown)
    assert (job.state, job.error_code) == (JobState.FAILED, "internal_error")
    assert run.cluster.states()[JobState.SUCCEEDED] == NUM_JOBS
