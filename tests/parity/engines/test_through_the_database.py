"""What comes out of the database is what `model.generate` says to that job alone.

Ten families in one worker at once, each with jobs of every kind in each other's company.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from db import FoundJob, JobState, find_results
from db.schema import migrate
from db.session import Database
from db.states import FINISHED
from engine.protocol.request import Request
from tasks import generate, submit_batch
from tasks.contracts.by_task import CONTRACTS
from tasks.contracts.contract import Contract
from tests import checkpoints
from tests.parity.trials.alone import Alone
from tests.parity.trials.every_setting import TASK, alone_of
from tests.running.producers import producing
from tests.running.workers import PATIENCE_SECONDS, Cluster
from tests.services.servers import ValkeyServer

FAMILIES = (
    *("t5", "bart", "pegasus", "marian", "m2m100", "mbart"),
    *("gpt2", "llama", "qwen2", "opt"),
)
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 20},
    "beams": {"max_new_tokens": 14, "num_beams": 4},
    "several returned": {"max_new_tokens": 10, "num_beams": 3, "num_return_sequences": 2},
    "repetition penalty": {"max_new_tokens": 20, "repetition_penalty": 1.4},
    "no repeated n-gram": {"max_new_tokens": 20, "no_repeat_ngram_size": 2},
    "minimum length": {"max_new_tokens": 24, "min_new_tokens": 14},
    "a sample": {"max_new_tokens": 12, "do_sample": True, "seed": 7},
}
# The article's example, word for word.
ARTICLE: dict[str, Any] = {"text": "今天天气很好", "max_length": 50, "num_return_sequences": 1}


@dataclass
class Night:
    """Everything that was asked and what the database says to it."""

    folders: dict[str, Path]
    found: dict[str, FoundJob]  # by custom id
    article: FoundJob


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyServer) -> Iterator[Night]:
    folder = tmp_path_factory.mktemp("night")
    folders = {kind: checkpoints.build(kind, folder / kind) for kind in FAMILIES}
    database = Database(f"sqlite:///{folder}/tidemill.db")
    migrate(database)
    cluster = Cluster(folder, database, valkey.new_database())
    config = cluster.configure_models(
        {
            kind: {"checkpoint": kind, "tasks": [TASK[kind]], "device": "cpu", "threads": 1}
            for kind in FAMILIES
        }
    )
    try:
        with (
            producing(cluster.database_url, cluster.redis_url, config),
            # Ten processes that load a model each, at once.
            cluster.worker(ready_seconds=2 * PATIENCE_SECONDS),
        ):
            contracts = list(asked())
            submit_batch(iter(contracts), name="night")
            article = generate.submit(model="gpt2", custom_id="article", **ARTICLE)
            assert article.wait(PATIENCE_SECONDS).state in FINISHED
            cluster.wait_until_finished(len(contracts) + 1)
            found = {job.custom_id or "": job for job in find_results(state=None)}
            (said,) = find_results(custom_id="article")
        yield Night(folders, found, said)
    finally:
        cluster.end()
        database.close()


def asked() -> Iterator[Contract]:
    for kind in FAMILIES:
        for name, settings in SETTINGS.items():
            for number, text in enumerate(checkpoints.sentences(3, seed=11)):
                fields = {"text": text, "model": kind, "custom_id": f"{kind}/{name}/{number}"}
                if TASK[kind] == "translate":
                    fields |= {"source_language": "en", "target_language": "fr"}
                yield CONTRACTS[TASK[kind]].parse({**fields, "do_sample": False, **settings})


def expected_of(alone: Alone, text: str, settings: dict[str, Any]) -> list[str]:
    request = Request(id=0, task=TASK[alone.kind], text=text)
    answers = alone_of(alone, request, {"do_sample": False, **settings})
    return [alone.text(each).strip() for each in answers]


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_answer_out_of_the_database_is_the_answer_alone(night: Night, kind: str) -> None:
    alone = Alone(kind, night.folders[kind])
    wrong, said = [], set()
    for name, settings in SETTINGS.items():
        for number, text in enumerate(checkpoints.sentences(3, seed=11)):
            job = night.found[f"{kind}/{name}/{number}"]
            assert job.state == JobState.SUCCEEDED, (name, job.error)
            expected = expected_of(alone, text, settings)
            got = [each.strip() for each in (job.output or "", *job.alternatives)]
            if got != expected:
                wrong.append((name, text, got, expected))
            said.update(expected)
    assert wrong == []
    assert len(said) > len(SETTINGS), "references that repeat one another agree with anything"


def test_a_job_answers_as_the_articles_example(night: Night) -> None:
    alone = Alone("gpt2", night.folders["gpt2"])
    (expected,) = expected_of(alone, ARTICLE["text"], {"max_length": ARTICLE["max_length"]})
    assert night.article.state == JobState.SUCCEEDED
    assert (night.article.output or "").strip() == expected != ""
    assert night.article.alternatives == ()
