"""A translation by way of a third language: two models, of one worker or of two."""

from typing import Any
from uuid import UUID

from sqlalchemy import func, select

from db.models import Segment
from db.reading.job_details import find_details
from db.session import Database
from db.states import JobState
from tasks.submission.batch import submit_batch
from tasks.translate import TranslateContract, submit
from tests.integration.running.test_documents import num_generated
from tests.running.producers import FAKE
from tests.running.workers import TAKEN_UP_SOON, Cluster, on_sqlite, until

LINES = [f"Zeile {word} des Textes, die weit geht." for word in "abcdefghijkl"]
TEXT = "\n\n".join(LINES)
MODELS = {
    "german": {**FAKE, "tasks": ["translate"], "languages": ["de>en"]},
    "french": {**FAKE, "tasks": ["translate"], "languages": ["en>fr"], "max_sequences": 2},
}


def translated(database: Database, job_id: UUID) -> tuple[str, dict[str, Any], int]:
    details = find_details(job_id, database=database)
    assert details is not None
    assert details.job.state is JobState.SUCCEEDED, details.job.error
    assert details.provenance is not None
    assert details.job.output is not None
    document: dict[str, Any] = details.provenance["document"]
    return details.job.output, document, details.job.attempt


def num_segments(database: Database) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(Segment)) or 0


def test_two_workers_with_one_model_each_answer_as_one_worker_with_both(producer: Cluster) -> None:
    producer.configure_models(MODELS)
    database = producer.database
    with producer.worker():
        one = submit(text=TEXT, source_language="de", target_language="fr").id
        producer.wait_until_finished(1)
    output, document, attempt = translated(database, one)
    assert attempt == 1, "a worker that serves both goes on by itself"
    assert [
        (each["model"], each["source_language"], each["target_language"], each["checkpoint"])
        for each in document["route"]
    ] == [("german", "de", "en", "fake"), ("french", "en", "fr", "fake")]
    assert len(output.split("\n\n")) == len(LINES)

    fields = {"text": TEXT, "source_language": "de", "target_language": "fr"}
    with producer.worker(TIDEMILL_MODELS="german"):
        other = submit(use_cache=False, **fields).id
        # Of this one the cache has every answer, and a worker on the way must have them, too.
        cached = submit(**fields).id
        until(lambda: producer.job(other).model == "french", "the job in the other's queue")
        assert producer.job(other).failures == 0
        until(lambda: producer.job(cached).model == "french", "the other one there, too")
    num_kept = num_segments(database)
    assert num_kept >= len(LINES)
    with producer.worker(TIDEMILL_MODELS="french"):
        producer.wait_until_finished(3)
        assert num_generated(producer) >= len(LINES)
    again, document_again, attempt = translated(database, other)
    assert again == output
    assert document_again["route"] == document["route"]
    assert attempt == 2
    assert translated(database, cached)[::2] == (output, 2)
    assert num_segments(database) == 0, "a job that has its result needs none"


@on_sqlite
def test_a_job_whose_second_model_dies_repeats_nothing_of_the_first(producer: Cluster) -> None:
    slow = {**MODELS["french"], "fake_step_seconds": 0.02, "max_sequences": 2}
    models = {"german": MODELS["german"], "french": slow}
    producer.configure_models(models, TAKEN_UP_SOON)
    database = producer.database
    with producer.worker(TIDEMILL_MODELS="german"):
        job_id = submit(text=TEXT, source_language="de", target_language="fr").id
        until(lambda: producer.job(job_id).model == "french", "the job in the other's queue")
    num_first = num_segments(database)
    killed = producer.start_worker(
        TIDEMILL_MODELS="french", TIDEMILL_FAIL_AT=f"generated:{len(LINES) - 2}"
    )
    killed.wait()
    num_kept = num_segments(database)
    assert num_kept >= num_first
    with producer.worker(TIDEMILL_MODELS="french"):
        producer.wait_until_finished(1)
        assert num_generated(producer) == len(LINES) - (num_kept - num_first)
    output, _, attempt = translated(database, job_id)
    assert len(output.split("\n\n")) == len(LINES)
    assert attempt == 3


@on_sqlite
def test_each_code_of_the_source_language_goes_through_the_pivot(producer: Cluster) -> None:
    producer.configure_models(MODELS)
    german = "Die Flut ist niedrig und die Fähre wartet im Hafen bis zum Morgen."
    fields = {"text": german, "target_language": "fr"}
    with producer.worker():
        submit_batch(
            [
                TranslateContract.parse({**fields, "source_language": source})
                for source in ("de", "de-AT", "deu_Latn")
            ],
            name="b",
        )
        keyed = {**fields, "source_language": "de", "idempotency_key": "k"}
        first = submit(**keyed)
        assert submit(**keyed).id == first.id, "what we add to a contract is no other job"
        producer.wait_until_finished(4)
    assert producer.states() == {"succeeded": 4}
