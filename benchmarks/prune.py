"""What pruning costs the jobs that run meanwhile, and how fast it is.

    python -m benchmarks.prune [--old 1000000] [--jobs 20000] [--rounds 3] [--quick]

Jobs run through a real worker with the fake engine, which costs next to nothing, so that the
database is what they wait for; alone and beside a `tidemill prune` of finished jobs, in turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice, repeat
from pathlib import Path

from sqlalchemy import func, insert, select
from uuid_utils.compat import uuid7

from benchmarks.pipeline import DATABASES, FAKE, RAW, Road, ask, worker
from db.clock import seconds_from_now
from db.models import Job, Payload, Result
from db.queries.inserts import table
from db.session import Database
from tests.jobs import job_row

RETENTION = '\n[retention]\npayloads = "1d"\noutputs = "1d"\n'
TEXT = "the tide turns and the wheel of the mill begins to move again " * 16  # about 1 kB
CHUNK = 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--old", type=int, default=1_000_000, help="finished jobs to prune")
    parser.add_argument("--jobs", type=int, default=20_000, help="that run, in each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="40,000 old, 4,000 jobs, one round")
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
        for _ in range(arguments.rounds):
            alone = float(ask("run", arguments.jobs, environment))
            with subprocess.Popen(
                [sys.executable, "-m", "cli", "prune"], env=environment, stdout=subprocess.DEVNULL
            ) as pruning:
                # Until it has begun: that a command starts is not what this measures.
                before = num_pruned(database)
                while num_pruned(database) == before:
                    time.sleep(0.1)
                beside = float(ask("run", arguments.jobs, environment))
                was_pruning = pruning.poll() is None
                pruning.terminate()
            assert was_pruning, "everything was pruned before the jobs were done: give more --old"
            shares.append(beside / alone)
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "cli", "prune", "--json"],
            env=environment, check=True, stdout=(road.folder / "pruned").open("w"),
        )  # fmt: skip
        seconds = time.perf_counter() - begun
        database.close()
    texts = sum_of(road.folder / "pruned")
    print(
        f"{name:<11} jobs/s beside pruning, of those without: {statistics.median(shares):.3f} "
        f"({min(shares):.3f}-{max(shares):.3f}); {texts / seconds:,.0f} texts pruned/s with no "
        "job running",
        flush=True,
    )


def num_pruned(database: Database) -> int:
    with database.read() as session:
        pruned = (each.pruned_at.is_not(None) for each in (Payload, Result))
        counts = (session.scalar(select(func.count()).where(each)) or 0 for each in pruned)
        return sum(counts)


def sum_of(path: Path) -> int:

    return int(sum(json.loads(path.read_text())["pruned"].values()))


def add_old(database: Database, num: int) -> None:
    """Insert jobs that succeeded two days ago."""
    old = old_ids(num)
    while ids := list(islice(old, CHUNK)):
        with database.write() as session:
            rows = [job_row(id=each, model="measured", state="succeeded") for each in ids]
            then = seconds_from_now(-2 * 86_400)
            session.execute(
                insert(table(Job)).values(finished_at=then, created_at=then, turn_at=then), rows
            )
            session.execute(
                insert(table(Payload)),
                [{"job_id": each, "contract": {"text": TEXT}, "metadata": {}} for each in ids],
            )
            session.execute(
                insert(table(Result)),
                [
                    {
                        "job_id": each,
                        "output": TEXT,
                        "alternatives": [],
                        "finish_reason": "stop",
                        "prompt_tokens": 300,
                        "completion_tokens": 300,
                        "provenance": {"settings": {}},
                    }
                    for each in ids
                ],
            )


def old_ids(num: int) -> Iterator[object]:
    return (uuid7() for _ in repeat(None, num))


if __name__ == "__main__":
    main()
