"""Measure the time of recovery from each fault, and the cost of the guarantees without a fault.

    python -m benchmarks.recovery [engine] [redis] [postgres] [worker] [cost] [rows] [backlog]

Each part starts its own Valkey, PostgreSQL on TCP and Celery workers, with a worker's default
settings and the fake engine. The times are PostgreSQL's, recorded by triggers.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import redis
from sqlalchemy import select, text

from db.models import Job
from db.schema import migrate
from db.session import Database
from db.states import JobState
from tests.chaos import checker, witness
from tests.chaos.history import History
from tests.chaos.postgres import ChaosPostgres
from tests.chaos.run import Run
from tests.running.producers import producing
from tests.running.workers import Cluster, WorkerProcess, until
from tests.services.servers import ValkeyServer

NUM_TIMES = 10
BACKLOG = 1_000_000
NUM_COSTED = 6_000


@contextmanager
def scene(
    worker: dict[str, Any], **model: Any
) -> Iterator[tuple[Run, ValkeyServer, ChaosPostgres]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "valkey").mkdir()
        valkey = stack.enter_context(ValkeyServer.started(folder / "valkey"))
        postgres = stack.enter_context(ChaosPostgres.started())
        database = Database(postgres.url(postgres.new_database()))
        stack.callback(database.close)
        migrate(database)
        witness.install(database)
        cluster = Cluster(folder, database, f"redis://127.0.0.1:{valkey.port}/0")
        stack.callback(cluster.end)
        path = cluster.configure(worker=worker, **model)
        stack.enter_context(producing(cluster.database_url, cluster.redis_url, path))
        yield Run(cluster, History(folder / "history.jsonl")), valkey, postgres


def report(what: str, seconds: list[float]) -> None:
    print(
        f"{what:<64} n={len(seconds):<4} p50 {statistics.median(seconds):6.2f} s"
        f"   max {max(seconds):6.2f} s",
        flush=True,
    )


def resumed(run: Run, at: float, state: JobState) -> float:
    """Wait until a job enters a state; returns the seconds since `at`."""

    def first() -> float | None:
        with run.cluster.database.read() as session:
            return session.scalar(
                text("SELECT min(at) FROM witness WHERE at > :at AND state = :state"),
                {"at": at, "state": state},
            )

    return float(until(lambda: run.persistently(first), f"a job {state}")) - at


def again_and_again(run: Run, strike: Callable[[], float], state: JobState) -> list[float]:
    """Repeat a fault, each time waiting for the next job in a state and for some more results.

    strike: causes the fault and returns its time
    """
    seconds = []
    for _ in range(NUM_TIMES):
        num_done = run.cluster.states().get(JobState.SUCCEEDED, 0)
        seconds.append(resumed(run, strike(), state))
        run.cluster.wait_for(JobState.SUCCEEDED, num_done + 100)
    return seconds


def engine() -> None:
    with scene({}, fake_step_seconds=0.02) as (run, _, _), run.cluster.worker() as worker:
        keep_waiting(run)

        def strike() -> float:
            (engine,) = worker.children
            engine.kill()
            return time.time()

        report(
            "engine killed, to the next result", again_and_again(run, strike, JobState.SUCCEEDED)
        )
        finish(run, worker)


def redis_flush() -> None:
    with scene({}, fake_step_seconds=0.02) as (run, valkey, _), run.cluster.worker() as worker:
        keep_waiting(run)

        def strike() -> float:
            with redis.Redis(port=valkey.port) as client:
                client.flushall()
            return time.time()

        report("Redis flushed, to the next claim", again_and_again(run, strike, JobState.RUNNING))
        finish(run, worker)


def postgres_restart() -> None:
    with scene({}, fake_step_seconds=0.02) as (run, _, postgres), run.cluster.worker() as worker:
        keep_waiting(run)

        def strike() -> float:
            postgres.stop()
            postgres.start()
            return time.time()

        report(
            "PostgreSQL restarted, from its first answer to the next result",
            again_and_again(run, strike, JobState.SUCCEEDED),
        )
        finish(run, worker)


def keep_waiting(run: Run) -> None:
    run.submit(30_000, num_tokens=20)
    run.cluster.wait_for(JobState.SUCCEEDED, 100)


def finish(run: Run, worker: WorkerProcess) -> None:
    """Cancel the waiting jobs, which only kept the worker busy, and stop the worker."""
    with run.cluster.database.read() as session:
        waiting = list(session.scalars(select(Job.id).where(Job.finished_at.is_(None))))
    run.cancel(waiting)
    run.wait_until_finished()
    worker.stop()


def worker_killed() -> None:
    """Run four workers and kill three, a few seconds apart; the fourth takes over their jobs."""
    with scene({}, fake_step_seconds=0.05) as (run, _, _):
        workers = [run.cluster.start_worker() for _ in range(4)]
        for each in workers:
            each.wait_until_ready()
        run.submit(1_500, num_tokens=40)
        run.cluster.wait_for(JobState.RUNNING, 300)
        for each in workers[:3]:
            num_done = run.cluster.states().get(JobState.SUCCEEDED, 0)
            run.kill(each)
            run.cluster.wait_for(JobState.SUCCEEDED, num_done + 64)
        until(lambda: run.num_unfinished() == 0, "the end", seconds=300)
        assert run.complaints(bounds=None) == []
        books = checker.Books.of(run.history, run.cluster.database)
        seconds = [each for _, each in checker.orphaned_seconds(books)]
        report("worker killed (lease 60 s), until a job is back in line", seconds)
        workers[3].stop()


def cost() -> None:
    for jobs_per_message in (1, 16, 64):
        settings = {"jobs_per_message": jobs_per_message}
        with (
            scene(settings, max_sequences=256) as (run, _, _),
            run.cluster.worker() as worker,
        ):
            process = psutil.Process(worker.pid)
            before = process.cpu_times()
            run.submit(NUM_COSTED, num_tokens=1)
            run.wait_until_finished()
            after = process.cpu_times()
            spent = (after.user + after.system) - (before.user + before.system)
            print(
                f"messages of {jobs_per_message:>2} jobs: {1000 * spent / NUM_COSTED:.2f} ms of "
                f"CPU in the worker's process for each of {NUM_COSTED} jobs",
                flush=True,
            )


# Triggers that record the number of rows of each statement, and its transaction.
COUNT_ROWS = """
CREATE TABLE written (xid xid8, num_rows bigint);
CREATE FUNCTION count_rows() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO written SELECT pg_current_xact_id(), count(*) FROM changed;
    RETURN NULL;
END $$;
"""
COUNTED = ("batches", "jobs", "payloads", "results", "attempts", "workers", "leaderships")


def rows() -> None:
    """Print the most rows that one transaction writes, for everything that may happen to jobs."""
    settings = {"lease_seconds": 4.0, "renew_seconds": 1.0}
    with scene(settings, max_sequences=2048, fake_step_seconds=0.02) as (run, valkey, _):
        count_rows(run.cluster.database)
        most: dict[str, int] = {}
        run.submit(50_000)
        most["submitting"] = most_rows(run.cluster.database)
        dying = run.cluster.start_worker()
        dying.wait_until_ready()
        with run.cluster.worker() as worker:
            run.cluster.wait_for(JobState.SUCCEEDED, 5_000)
            most["running"] = most_rows(run.cluster.database)
            with redis.Redis(port=valkey.port) as client:
                client.flushall()
            run.kill(dying)
            run.cluster.wait_for(JobState.SUCCEEDED, 30_000)
            most["recovering from a worker's death and a flushed Redis"] = most_rows(
                run.cluster.database
            )
            print(run.cluster.run(sys.executable, "-m", "cli", "cancel", "--batch", "night").stdout)
            most["cancelling the rest of the batch"] = most_rows(run.cluster.database)
            finish(run, worker)
    for what, num_rows in most.items():
        print(f"rows written by one transaction while {what}: at most {num_rows:,}", flush=True)


def count_rows(database: Database) -> None:
    with database.write() as session:
        session.execute(text(COUNT_ROWS))
        for table in COUNTED:
            for event, name in (("INSERT", "inserted"), ("UPDATE", "updated")):
                session.execute(
                    text(
                        f"CREATE TRIGGER {name} AFTER {event} ON {table} REFERENCING NEW TABLE "
                        "AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_rows()"
                    )
                )


def most_rows(database: Database) -> int:
    """Return the most rows that one transaction has written since the last call."""
    with database.write() as session:
        most = session.execute(
            text("SELECT max(num) FROM (SELECT sum(num_rows) num FROM written GROUP BY xid) sums")
        ).scalar_one()
        session.execute(text("TRUNCATE written"))
    return int(most or 0)


def backlog() -> None:
    with scene({}, fake_step_seconds=0.02) as (run, valkey, _):
        insert_backlog(run.cluster.database)
        with run.cluster.worker() as worker, redis.Redis(port=valkey.port) as client:
            most = 0
            for num_done in range(100, 1100, 100):
                run.cluster.wait_for(JobState.SUCCEEDED, num_done)
                most = max(most, client.info("memory")["used_memory"])
            print(f"Redis with {BACKLOG:,} jobs queued: {most / 2**20:.2f} MiB used at most")
            seconds = []
            for _ in range(NUM_TIMES):
                job_id = run.submit_one()
                until(lambda job_id=job_id: run.cluster.job(job_id).started_at, "its start")
                job = run.cluster.job(job_id)
                seconds.append((job.started_at - job.created_at).total_seconds())
            report(f"interactive job behind {BACKLOG:,} others, to its start", seconds)
            worker.stop()


def insert_backlog(database: Database) -> None:
    """Insert a million jobs, which PostgreSQL generates itself."""
    with database.write() as session:
        session.execute(text("SET LOCAL statement_timeout = 0"))
        session.execute(
            text(
                """
                INSERT INTO jobs (id, task, model, state, lane, priority, tenant, num_characters,
                                  created_at, turn_at)
                SELECT uuidv7(), 'generate', 'fake', 'queued', 'bulk', 0, 'default', 4,
                       statement_timestamp(),
                       statement_timestamp() + number / 1000 * interval '1 ms'
                FROM generate_series(1, :num_jobs) number
                """
            ),
            {"num_jobs": BACKLOG},
        )
        session.execute(
            text(
                """
                INSERT INTO payloads (job_id, contract, metadata)
                SELECT id, '{"text": "word", "max_new_tokens": 8}', '{}' FROM jobs
                """
            )
        )
        session.execute(text("ANALYZE jobs, payloads"))


PARTS: dict[str, Callable[[], None]] = {
    "engine": engine,
    "redis": redis_flush,
    "postgres": postgres_restart,
    "worker": worker_killed,
    "cost": cost,
    "rows": rows,
    "backlog": backlog,
}


if __name__ == "__main__":
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()
