"""A worker dies at each moment of a job's life; another finishes everything, once."""

import signal
from typing import get_args

import pytest
import redis

from db.states import JobState
from tests.chaos.run import SHORT, Run
from tests.running.workers import on_sqlite
from worker.dispatcher.broker import MARKER
from worker.failpoints import Moment

NUM_JOBS = 40


# "kept" is a moment of documents: tests/integration/running/test_documents.py dies there.
@pytest.mark.parametrize("moment", sorted({*get_args(Moment)} - {"kept"}))
def test_a_worker_that_dies_loses_no_job_and_repeats_no_result(run: Run, moment: str) -> None:
    run.submit(NUM_JOBS)
    dying = run.cluster.start_worker(TIDEMILL_FAIL_AT=moment)
    assert run.bury(dying) == -signal.SIGKILL, dying.log
    assert run.num_unfinished() > 0 or moment in ("committed", "acked")
    with run.cluster.worker():
        run.wait_until_finished()
    assert run.cluster.states() == {JobState.SUCCEEDED: NUM_JOBS}
    assert run.complaints() == []


def test_a_message_lost_between_redis_and_the_worker_is_published_again(run: Run) -> None:
    with redis.Redis.from_url(run.cluster.redis_url) as client:
        client.set(MARKER, "Redis has lost nothing that it knows of")
        job_id = run.submit_one()
        # As kombu does it, which dies before it writes down what it holds.
        assert client.brpop("tidemill.fake.interactive", timeout=1) is not None
        assert run.cluster.job(job_id).published_at is not None
        with run.cluster.worker() as worker:
            run.wait_until_finished()
            assert "messages lost" in worker.log
    assert run.complaints() == []


@on_sqlite
def test_an_engine_killed_from_outside_is_not_blamed_on_its_only_job(run: Run) -> None:
    run.cluster.configure(worker=SHORT, fake_step_seconds=0.1)
    with run.cluster.worker() as worker:
        job_id = run.submit_one(max_new_tokens=20)
        run.cluster.wait_for(JobState.RUNNING)
        (engine,) = worker.children
        engine.kill()
        run.wait_until_finished()
    assert run.cluster.job(job_id).state == JobState.SUCCEEDED
    assert run.complaints() == []
