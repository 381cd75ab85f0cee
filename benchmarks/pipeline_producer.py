"""The producer of `benchmarks.pipeline`: submits the jobs and measures the rates."""

import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import func, select

from benchmarks.pipeline_model import read_requests
from db.models import Job
from db.queries.jobs import submission
from db.schema import migrate
from db.states import JobState
from tasks import submit_batch
from tasks.configuration.settings import database
from tasks.generate import GenerateContract

LOOK_SECONDS = 0.25  # between two polls, which take time from the worker
WORDS = "the tide turns and the wheel of the mill begins to move again while gulls cry " * 13


def enqueue(num_jobs: int) -> None:
    """Print documents a second and the peak of this process's memory in MiB."""
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
    """Print jobs a second, from the first insert to the last commit."""
    contracts = (
        # Each text is different; otherwise the content cache would answer all but one.
        GenerateContract.parse({"text": f"gulls cry {number}", "max_new_tokens": 8})
        for number in range(num_jobs)
    )
    print(num_jobs / finish(contracts))


def answer(requests: str, warm_up: str) -> None:
    """Print the same for the requests in a file, by a worker that has answered others before."""
    finish(map(GenerateContract.parse, read_requests(Path(warm_up))))
    jobs = read_requests(Path(requests))
    print(len(jobs) / finish(map(GenerateContract.parse, jobs)))


def finish(contracts: Iterable[GenerateContract]) -> float:
    """Submit the jobs as a batch and wait for the last; all must have an answer.

    Returns the seconds until the last job ended, by the database's times.
    """
    started_at = time.time()
    batch = submit_batch(contracts, name="jobs")
    while True:
        with database().read() as session:
            if not session.scalar(submission.has_unfinished(batch.id)):
                break
        time.sleep(LOOK_SECONDS)
    with database().read() as session:
        assert not session.scalar(select(Job.id).where(Job.state != JobState.SUCCEEDED).limit(1))
        (ended_at,) = session.execute(select(func.max(Job.finished_at))).one()
    return float(ended_at.timestamp() - started_at)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["enqueue", number]:
            enqueue(int(number))
        case ["run", number]:
            run(int(number))
        case ["answer", requests, warm_up]:
            answer(requests, warm_up)
