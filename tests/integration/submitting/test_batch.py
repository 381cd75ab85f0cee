"""A night's work: many jobs submitted together, each with one result in the end."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings

from db import JobState, find_results
from db.states import FINISHED
from tasks import submit_batch
from tasks.contracts.contract import Contract
from tasks.generate import GenerateContract
from tasks.summarize import SummarizeContract
from tests.running.workers import Cluster, on_sqlite
from tests.samples.contracts import acceptable_contracts

# What the text or the limits of the model may still refuse when the job runs.
CODES_OF_THE_TEXT = {
    "empty_prompt",
    "prompt_too_long",
    "output_too_long",
    "unknown_language",
    "unsupported_parameter",
    "no_chat_template",
    "language_unclear",
    "parts_too_small",
    "summary_not_shorter",
    "not_subtitles",
}


def test_two_thousand_jobs_end_with_one_result_each(producer: Cluster) -> None:
    producer.configure(max_sequences=64)
    contracts = (
        SummarizeContract.parse({"text": f"number {n} of many", "custom_id": str(n)})
        for n in range(2000)
    )
    with producer.worker():
        batch = submit_batch(contracts, name="night", run_key="night-1")
        assert (batch.num_new, batch.num_known) == (2000, 0)
        producer.wait_until_finished(2000)
    assert producer.states() == {JobState.SUCCEEDED: 2000}
    assert Counter(producer.results_per_job().values()) == {1: 2000}
    found = list(find_results(batch="night-1", database=producer.database))
    assert {job.custom_id for job in found} == {str(n) for n in range(2000)}
    for job in found:
        assert set((job.output or "").split()) <= {"number", job.custom_id, "of", "many"}


@on_sqlite
def test_two_workers_share_a_batch_and_run_no_job_twice(producer: Cluster) -> None:
    producer.configure(fake_step_seconds=0.002, max_sequences=4)
    with producer.worker(), producer.worker():
        submit_batch(
            (GenerateContract.parse({"text": f"a b {n}", "max_new_tokens": 5}) for n in range(300)),
            name="shared",
        )
        producer.wait_until_finished(300)
    assert Counter(producer.results_per_job().values()) == {1: 300}
    assert {producer.job(job_id).attempt for job_id in producer.results_per_job()} == {1}


@on_sqlite
def test_an_urgent_job_does_not_wait_for_the_night(producer: Cluster) -> None:
    from tasks import generate

    producer.configure(fake_step_seconds=0.02, max_sequences=4)
    with producer.worker():
        night = [
            GenerateContract.parse({"text": "a b c", "max_new_tokens": 20}) for _ in range(200)
        ]
        submit_batch(night, name="night")
        producer.wait_for(JobState.RUNNING, 4)
        urgent = generate.submit(text="now", max_new_tokens=2)
        assert urgent.wait(60).state == JobState.SUCCEEDED
        assert producer.states()[JobState.QUEUED] > 0, "the night was over before"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_whatever_is_accepted_can_be_run(producer: Cluster) -> None:
    accepted: list[Contract] = []

    @given(contract=acceptable_contracts())
    @settings(
        max_examples=300,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def draw(contract: Contract) -> None:
        # Its own identity, so that one random key or another does not make jobs one.
        own = {"idempotency_key": None, "deadline": None}
        if contract.custom_id in {each.custom_id for each in accepted}:
            own["custom_id"] = None  # in a batch an id stands once
        accepted.append(contract.model_copy(update=own))

    draw()
    assert len(accepted) >= 200

    producer.configure(max_new_tokens=64, max_input_tokens=2000, max_sequences=64)
    with producer.worker():
        batch = submit_batch(iter(accepted), name="random")
        assert batch.num_new == len(accepted)
        producer.wait_until_finished(len(accepted))

    found = list(find_results(state=None, batch="random", database=producer.database))
    assert {job.state for job in found} <= FINISHED
    failed = [job for job in found if job.state is not JobState.SUCCEEDED]
    strange = [job.error for job in failed if job.error and job.error.code not in CODES_OF_THE_TEXT]
    assert strange == []
    assert all(job.error is not None for job in failed)
    assert len(failed) < len(found) / 2
