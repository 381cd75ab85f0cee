"""The measuring half of `benchmarks.pipeline`, in the environment that it sets up."""

import resource
import sys
import time

from db import queries
from db.schema import migrate
from tasks import submit_batch
from tasks.generate import GenerateContract
from tasks.settings import database

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
    batch = submit_batch(
        (
            GenerateContract.parse({"text": "gulls cry", "max_new_tokens": 8})
            for _ in range(num_jobs)
        ),
        name="jobs",
    )
    while True:
        with database().read() as session:
            if not session.scalar(queries.has_unfinished(batch.id)):
                break
        time.sleep(0.1)
    print(num_jobs / (time.perf_counter() - started_at))


if __name__ == "__main__":
    {"enqueue": enqueue, "run": run}[sys.argv[1]](int(sys.argv[2]))
