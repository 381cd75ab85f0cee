"""The producer of `benchmarks.documents`: submits the jobs and measures the times."""

import itertools
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import func, select

from db.models import Job, Result
from db.queries.jobs import submission
from db.states import JobState
from engine.protocol.engine_spec import EngineSpec
from tasks import submit_batch
from tasks.configuration.catalog import Catalog
from tasks.configuration.settings import database
from tasks.generate import GenerateContract
from tasks.submit import submit_contract
from tasks.summarize import SummarizeContract
from tests.running.recipe_runs import run_recipe
from worker.engines.engine_client import EngineClient
from worker.recipes.recipe import Work
from worker.recipes.summarize import summarize

LOOK_SECONDS = 0.25
INTERACTIVE_SECONDS = 0.25  # between two interactive jobs
SETTINGS = {"max_new_tokens": 32, "seed": 1}


def write_parts(config: Path, documents: Path, parts: Path) -> None:
    """Write every request of the documents' recipes as the contract of a separate job.

    Prints the number of contracts.
    """
    model = Catalog.load(config).models["measured"]
    spec = EngineSpec(
        alias="measured",
        checkpoint=model.checkpoint,
        engine=model.engine,
        dtype=model.dtype,
        threads=model.threads,
        max_sequences=model.max_sequences,
        max_input_tokens=model.max_input_tokens,
    )
    client = EngineClient(spec)
    num_parts = 0
    ids = itertools.count()
    try:
        card = client.start()
        with parts.open("w", encoding="utf-8") as file:
            for contract in read(documents):
                work = Work(UUID(int=1), "summarize", contract, card, ids)
                _, answered = run_recipe(client, summarize(work))
                for request, _ in answered:
                    params = request.params.to_json()
                    print(json.dumps({"text": request.text, "strategy": "fail", **params}),
                          file=file)  # fmt: skip
                    num_parts += 1
    finally:
        client.stop()
    print(num_parts)


def run(path: Path) -> None:
    """Print the seconds until the last commit, and the times of the interactive jobs meanwhile."""
    ended = threading.Event()
    interactive: list[UUID] = []

    def submit_interactive() -> None:
        while not ended.wait(INTERACTIVE_SECONDS):
            contract = {"text": "gulls cry", "max_new_tokens": 8, "lane": "interactive"}
            interactive.append(submit_contract(GenerateContract.parse(contract)).id)

    # The clock starts after the worker has split and measured a first text, which loads libraries.
    text = "Gulls cry and the wheel turns. " * 300
    warm_up = submit_batch([SummarizeContract.parse({**SETTINGS, "text": text})], name="warm-up")
    wait_for(submission.has_unfinished(warm_up.id))
    started_at = time.time()
    batch = submit_batch(map(SummarizeContract.parse, read(path)), name="measured")
    thread = threading.Thread(target=submit_interactive)
    thread.start()
    wait_for(submission.has_unfinished(batch.id))
    ended.set()
    thread.join()
    wait_for(select(func.count() > 0).where(Job.finished_at.is_(None)))
    with database().read() as session:
        assert not session.scalar(select(Job.id).where(Job.state != JobState.SUCCEEDED).limit(1))
        assert not session.scalar(select(func.max(Result.left_out_characters)))
        (last,) = session.execute(
            select(func.max(Job.finished_at)).where(Job.batch_id == batch.id)
        ).one()
        times = session.execute(
            select(Job.created_at, Job.finished_at).where(Job.batch_id.is_(None))
        ).all()
    waits = [(end - begin).total_seconds() for begin, end in times if end is not None]
    assert len(waits) == len(interactive) > 0
    print(last.timestamp() - started_at, max(waits), statistics.median(waits))


def wait_for(unfinished: Any) -> None:
    while True:
        with database().read() as session:
            if not session.scalar(unfinished):
                return
        time.sleep(LOOK_SECONDS)


def read(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield {**SETTINGS, **json.loads(line)}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["parts", config, documents, parts]:
            write_parts(Path(config), Path(documents), Path(parts))
        case ["run", path]:
            run(Path(path))
