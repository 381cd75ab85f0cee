"""One job that kills its engine and one that starves it: each fails alone, with a typed error."""

from uuid import UUID

from sqlalchemy import update

from db.models import Payload
from db.states import JobState
from tests.chaos.run import SHORT, Run

NUM_JOBS = 1000


def test_two_poison_jobs_among_a_thousand_fail_and_no_other_does(run: Run) -> None:
    run.cluster.configure(
        worker=SHORT,
        max_sequences=32,
        fake_crash_on="crash",
        fake_out_of_memory_on="hunger",
    )
    job_ids = run.submit(NUM_JOBS)
    put_text(run, run.poison(job_ids[333], "engine_crash"), "a crash")
    put_text(run, run.poison(job_ids[666], "out_of_memory"), "a hunger")
    with run.cluster.worker():
        run.wait_until_finished()
    assert run.cluster.states() == {JobState.SUCCEEDED: NUM_JOBS - 2, JobState.FAILED: 2}
    assert run.complaints() == []


def put_text(run: Run, job_id: UUID, text: str) -> None:
    with run.cluster.database.write() as session:
        contract = {"text": text, "max_new_tokens": 8}
        session.execute(update(Payload).where(Payload.job_id == job_id).values(contract=contract))
