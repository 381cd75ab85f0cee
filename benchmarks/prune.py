"""Measure how much pruning slows running jobs, and how fast it is.

    python -m benchmarks.prune [--old 1000000] [--jobs 20000] [--rounds 3] [--quick]

Jobs run through a real worker with the fake engine, which costs almost nothing, so that the
database limits the speed. They run in turns alone and beside a `tidemill prune` of finished jobs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

from sqlalchemy import Uuid, bindparam, insert, select, text

from benchmarks.pipeline import DATABASES, FAKE, RAW, Road, ask, worker
from db.clock import seconds_from_now
from db.models import Job, Payload, Result
from db.queries.inserts import table
from db.session import Database
from tests.samples.jobs import job_row

RETENTION = '\n[retention]\npayloads = "1d"\noutputs = "1d"\n'
TEXT = "the tide turns and the wheel of the mill begins to move again " * 16  # about 1 kB
CHUNK = 50_000
MAX_WAIT_SECONDS = 600.0  # for the first of the old payloads to go
# Version 7 as all ids are, of a time before any that is made now.
FIRST = UUID("01900000-0000-7000-8000-000000000000")
KEYS = {
    "sqlite": "'01900000000070008000' || printf('%012x', n)",
    "postgresql": "CAST('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0') AS uuid)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--old", type=int, default=1_000_000, help="finished jobs to prune")
    parser.add_argument("--jobs", type=int, default=20_000, help="running jobs in each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="40,000 old, 4,000 jobs, one round")
    parser.add_argument("--rest", action="store_true", help="then prune the rest alone")
    parser.add_argument("--database", choices=DATABASES, action="append")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.old, arguments.jobs, arguments.rounds = 40_000, 4000, 1
    with Road.built() as road:
        road.configure(FAKE)
        config = road.folder / "tidemill.toml"
        config.write_text(config.read_text() + RETENTION)
        for name in arguments.database or DATABASES:
            measure(road, name, arguments)


def measure(road: Road, name: str, arguments: argparse.Namespace) -> None:
    environment = road.environment(name)
    with worker(environment):
        database = Database(environment["TIDEMILL_DATABASE_URL"])
        add_old(database, arguments.old)
        ask("run", arguments.jobs // 4, environment)  # to warm up
        shares = []
        alone = [float(ask("run", arguments.jobs, environment))]
        for _ in range(arguments.rounds):
            first = first_unpruned(database)
            with subprocess.Popen(
                [sys.executable, "-m", "cli", "prune"], env=environment, stdout=subprocess.DEVNULL
            ) as pruning:
                # The start of the command is not measured.
                wait_until_pruned(database, first)
                beside = float(ask("run", arguments.jobs, environment))
                was_pruning = pruning.poll() is None
                pruning.terminate()
            assert was_pruning, "everything was pruned before the jobs were done: give more --old"
            alone.append(float(ask("run", arguments.jobs, environment)))
            # Divided by the mean before and after, because the machine's speed drifts.
            shares.append(2 * beside / (alone[-1] + alone[-2]))
        print(
            f"{name:<11} jobs/s beside pruning, of those without: {statistics.median(shares):.3f} "
            f"({min(shares):.3f}-{max(shares):.3f}), {arguments.rounds} rounds",
            flush=True,
        )
        if arguments.rest:
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "cli", "prune", "--json"],
                env=environment, check=True, stdout=(road.folder / "pruned").open("w"),
            )  # fmt: skip
            rate = sum_of(road.folder / "pruned") / (time.perf_counter() - begun)
            print(f"{name:<11} {rate:,.0f} texts pruned/s with no job running", flush=True)
        database.close()


def wait_until_pruned(database: Database, job_id: UUID) -> None:
    """Wait until a job's payload is pruned. Raises TimeoutError.

    It reads one row by its key, because counting a million rows would slow the database.
    """
    pruned_at = select(Payload.pruned_at).where(Payload.job_id == job_id)
    deadline = time.monotonic() + MAX_WAIT_SECONDS
    while time.monotonic() < deadline:
        with database.read() as session:
            if session.scalar(pruned_at) is not None:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing was pruned within {MAX_WAIT_SECONDS} s")


def first_unpruned(database: Database) -> UUID:
    statement = select(Payload.job_id).where(Payload.pruned_at.is_(None))
    with database.read() as session:
        return session.scalars(statement.order_by(Payload.job_id).limit(1)).one()


def sum_of(path: Path) -> int:
    return int(sum(json.loads(path.read_text())["pruned"].values()))


def add_old(database: Database, num: int) -> None:
    """Insert jobs that succeeded two days ago: one as usual, the others as copies of it."""
    then = seconds_from_now(-2 * 86_400)
    with database.write() as session:
        job = insert(table(Job)).values(finished_at=then, created_at=then, turn_at=then)
        session.execute(job, [job_row(id=FIRST, model="measured", state="succeeded")])
        payload = {"job_id": FIRST, "contract": {"text": TEXT}, "metadata": {}}
        session.execute(insert(table(Payload)), [payload])
        result = {
            "job_id": FIRST,
            "output": TEXT,
            "alternatives": [],
            "finish_reason": "stop",
            "prompt_tokens": 300,
            "completion_tokens": 300,
            "provenance": {"settings": {}},
        }
        session.execute(insert(table(Result)), [result])
    key = KEYS[database.dialect]
    for start in range(1, num, CHUNK):
        with database.write() as session:
            for model in (Job, Payload, Result):
                own, *others = (column.name for column in model.__table__.columns)
                session.execute(
                    text(
                        f"WITH RECURSIVE numbers(n) AS (SELECT {start} UNION ALL "
                        f"SELECT n + 1 FROM numbers WHERE n + 1 < {min(start + CHUNK, num)}) "
                        f"INSERT INTO {model.__tablename__} ({own}, {', '.join(others)}) "
                        f"SELECT {key}, {', '.join(others)} "
                        f"FROM numbers CROSS JOIN {model.__tablename__} WHERE {own} = :first"
                    ).bindparams(bindparam("first", FIRST, Uuid())),
                )


if __name__ == "__main__":
    main()
