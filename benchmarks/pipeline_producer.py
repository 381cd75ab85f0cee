"""The measuring half of `benchmarks.pipeline`, in the environment that it sets up."""

import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import func, select

from benchmarks.pipeline_model import read_requests
from db import queries
from db.models import Job
from db.schema import migrate
from db.states import JobState
from tasks import submit_batch
from tasks.generate import GenerateContract
from tasks.settings import database

LOOK_SECONDS = 0.25
WORDS = "the tide turns and the wheel of the mill begins to move again while gulls cry " * 13


def enqueue(num_jobs: int) -> None:
    """Prints documents a second and the peak of this process's memory in MiB."""
    migrate(database())
    started_at = time.perf_counter()
    submit_batch(
        (GenerateContract.parse({"text": WORDS, "custom_id": f"d{n}"}) for n in range(num_jobs)),
        name="documents",
        run_key="documents",
    )
    seconds = time.perf_counter() - started_at
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(num_jobs / seconds, peak_kib / 1024)


def run(num_jobs: int) -> None:
    """Prints jobs a second, from the first insert to the last commit."""
    started_at = time.perf_counter()
    finish(
        GenerateContract.parse({"text": "gulls cry", "max_new_tokens": 8}) for _ in range(num_jobs)
    )
    print(num_jobs / (time.perf_counter() - started_at))


def answer(requests: str, warm_up: str) -> None:
    """The same of the requests in a file, by a worker that has answered others before."""
    finish(map(GenerateContract.parse, read_requests(Path(warm_up))))
    jobs = read_requests(Path(requests))
    started_at = time.time()
    finish(map(GenerateContract.parse, jobs))
    with database().read() as session:
        (ended_at,) = session.execute(select(func.max(Job.finished_at))).one()
    # By the database, for whoever looks often takes time from those that work.
    print(len(jobs) / (ended_at.timestamp() - started_at))


def finish(contracts: Iterable[GenerateContract]) -> None:
    """Submit the jobs as a batch and wait for the last; all must have an answer."""
    batch = submit_batch(contracts, name="jobs")
    while True:
        with database().read() as session:
            if not session.scalar(queries.has_unfinished(batch.id)):
                break
        time.sleep(LOOK_SECONDS)
    with database().read() as session:
        assert not session.scalar(select(Job.id).where(Job.state != JobState.SUCCEEDED).limit(1))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["enqueue", number]:
            enqueue(int(number))
        case ["run", number]:
            run(int(number))
        case ["answer", requests, warm_up]:
            answer(requests, warm_up)
