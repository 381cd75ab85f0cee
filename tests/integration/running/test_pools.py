"""Celery's threads do, at their own pace; a pool that forks is refused."""

from collections import Counter

import pytest

from db import JobState
from tasks import generate, submit_batch
from tasks.generate import GenerateContract
from tests.running.workers import Cluster, on_sqlite

pytestmark = [on_sqlite, pytest.mark.usefixtures("as_started")]


def test_under_threads_a_job_is_run(producer: Cluster) -> None:
    with producer.worker("-P", "threads"):
        job = generate.submit(text="a b c")
        assert job.wait(60).state == JobState.SUCCEEDED


def test_under_threads_a_batch_is_run(producer: Cluster) -> None:
    """A batch is published by the worker's own dispatcher."""
    with producer.worker("-P", "threads", "-c", "8"):
        contracts = (GenerateContract.parse({"text": "a b"}) for _ in range(50))
        submit_batch(contracts, name="night")
        producer.wait_until_finished(50)
    assert Counter(producer.results_per_job().values()) == {1: 50}


@pytest.mark.parametrize(
    "named", [("-P", "processes"), ("-P", "prefork"), ("--pool=prefork",)], ids=" ".join
)
def test_a_pool_that_forks_is_refused_with_the_reason(
    producer: Cluster, named: tuple[str, ...]
) -> None:
    job = generate.submit(text="a b c")
    worker = producer.start_worker(*named)
    assert worker.wait() != 0
    assert "a loaded model does not survive a fork" in worker.log
    assert "Leave -P away, or use -P threads" in worker.log
    assert "Traceback" not in worker.log
    assert producer.job(job.id).attempt == 0


def test_our_pool_may_be_chosen_by_celerys_custom_pool_option(producer: Cluster) -> None:
    pool = {"CELERY_CUSTOM_WORKER_POOL": "worker.celery.pool:EnginePool"}
    with producer.worker("-P", "custom", **pool):
        assert generate.submit(text="a b c").wait(60).state == JobState.SUCCEEDED
