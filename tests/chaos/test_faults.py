"""Faults that a rain of them would seldom hit just so."""

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import redis

from db.schema import migrate
from db.session import Database
from db.states import JobState
from tasks.app import app
from tests.chaos import witness
from tests.chaos.disk import SmallDisk, may_mount
from tests.chaos.faults import jobs_locked
from tests.chaos.history import History
from tests.chaos.postgres import ChaosPostgres
from tests.chaos.proxy import Proxy
from tests.chaos.run import SHORT, Run
from tests.running.producers import producing
from tests.running.workers import Cluster, on_sqlite, until
from tests.samples.jobs import insert_job

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
def test_a_worker_that_gets_a_message_from_a_full_redis_goes_on(run: Run) -> None:
    with redis.Redis.from_url(run.cluster.redis_url) as client, run.cluster.worker() as worker:
        worker.pause(run.cluster.database_url)
        run.submit_one()
        client.config_set("maxmemory", 1)
        try:
            worker.process.send_signal(signal.SIGCONT)
            # kombu takes it off the list, and cannot write down that it has it.
            # Which of its parts meets it first, and so says it, is a matter of luck.
            until(lambda: re.search(r"(raised=|\()OutOfMemoryError", worker.log), "Redis is full")
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


@on_sqlite
def test_an_engine_that_hangs_is_killed_and_its_jobs_succeed(run: Run) -> None:
    run.cluster.configure(worker={**SHORT, "stall_seconds": 1}, fake_step_seconds=0.02)
    with run.cluster.worker() as worker:
        run.submit(NUM_JOBS, num_tokens=40)
        run.cluster.wait_for(JobState.RUNNING, 8)
        (engine,) = worker.children
        engine.suspend()
        run.wait_until_finished()
        assert "engine stalled" in worker.log
    assert run.cluster.states() == {JobState.SUCCEEDED: NUM_JOBS}
    assert run.complaints() == []


# On SQLite the loop does it: make chaos.
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_lock_that_is_held_for_longer_than_a_statement_waits_costs_no_job(run: Run) -> None:
    run.cluster.configure(worker=SHORT, fake_step_seconds=0.02)
    with run.cluster.worker("--include", "tests.chaos.short_locks") as worker:
        run.submit(200, num_tokens=20)
        run.cluster.wait_for(JobState.SUCCEEDED, 20)
        with jobs_locked(run.cluster.database):
            until(lambda: "cannot write outcomes" in worker.log, "a statement that gave up")
        run.wait_until_finished()
    assert run.cluster.states() == {JobState.SUCCEEDED: 200}
    assert run.complaints(bounds=None) == []


@contextmanager
def on(url: str, run: Run, folder: Path) -> Iterator[Run]:
    """A run of its own on another database, with the same Redis."""
    database = Database(url)
    migrate(database)
    witness.install(database)
    cluster = Cluster(folder, database, run.cluster.redis_url)
    path = cluster.configure(worker=SHORT, fake_step_seconds=0.02, max_sequences=8)
    with producing(cluster.database_url, cluster.redis_url, path):
        try:
            yield Run(cluster, History(folder / "history.jsonl"))
        finally:
            cluster.end()
            database.close()


@on_sqlite
def test_outcomes_of_a_database_outage_are_written_when_it_ends(
    run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with (
        ChaosPostgres.started() as server,
        on(server.url(server.new_database()), run, tmp_path_factory.mktemp("own")) as own,
    ):
        own.cluster.configure(  # no lease ends meanwhile
            worker={**SHORT, "lease_seconds": 60}, fake_step_seconds=0.05, max_sequences=8
        )
        with own.cluster.worker() as worker, redis.Redis.from_url(run.cluster.redis_url) as client:
            own.submit(8, num_tokens=40)
            own.cluster.wait_for(JobState.RUNNING, 8)
            server.stop()
            until(lambda: "cannot write outcomes" in worker.log, "answers that cannot be written")
            assert client.hlen("unacked") > 0, "what is not written is not acked"
            server.start()
            own.wait_until_finished()
            until(lambda: client.hlen("unacked") == 0, "the acks")
        assert own.cluster.states() == {JobState.SUCCEEDED: 8}
        assert {own.cluster.job(job_id).attempt for job_id in own.cluster.results_per_job()} == {1}
        assert own.complaints() == []


@on_sqlite
@pytest.mark.parametrize("fault", ["stopped", "standby"])
def test_a_message_that_arrives_while_the_database_refuses_writes_is_kept_later(
    fault: str, run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    job_id = uuid4()
    with (
        ChaosPostgres.started() as server,
        on(server.url(server.new_database()), run, tmp_path_factory.mktemp("own")) as own,
        own.cluster.worker() as worker,
    ):
        with server.stopped() if fault == "stopped" else server.refusing_writes():
            contract = {"text": "word", "max_new_tokens": 8}
            with app.connection_for_write() as connection:
                app.send_task(
                    "tasks.generate", kwargs=contract, task_id=str(job_id), connection=connection
                )
            until(lambda: "cannot keep jobs" in worker.log, "a message that goes back")
        own.cluster.wait_until_finished(1)
        assert own.cluster.job(job_id).state == JobState.SUCCEEDED


@pytest.mark.skipif(not may_mount(), reason="no small disk may be mounted here")
@on_sqlite
@pytest.mark.parametrize("on_postgres", [False, True], ids=["sqlite", "postgresql"])
def test_a_full_disk_under_the_database_costs_no_job(
    on_postgres: bool, run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with ExitStack() as stack:
        disk = stack.enter_context(SmallDisk.mounted())
        server, url = None, f"sqlite:///{disk.folder}/tidemill.db"
        if on_postgres:
            server = stack.enter_context(ChaosPostgres.started(disk.folder))
            url = server.url(server.new_database())
        run = stack.enter_context(on(url, run, tmp_path_factory.mktemp("own")))
        with run.cluster.worker() as worker:
            run.submit(NUM_JOBS, num_tokens=20)
            run.cluster.wait_for(JobState.SUCCEEDED, 1)
            with disk.full():
                until(lambda: "cannot write outcomes" in worker.log, "an answer without room")
            if server is not None:
                server.start_if_ended()
            run.submit(NUM_JOBS)
            run.wait_until_finished()
        assert run.cluster.states() == {JobState.SUCCEEDED: 2 * NUM_JOBS}
        assert run.complaints() == []
