"""A document through real workers: killed in the middle, it is taken up where it was."""

from collections.abc import Callable, Iterable

import pytest
from sqlalchemy import func, select

from db.models import Segment
from db.reading.job_details import find_details
from db.session import Database
from db.states import JobState
from engine.protocol.output import Output
from engine.protocol.request import Request
from tasks.submit import submit_contract
from tasks.summarize import SummarizeContract
from tests.integration.monitoring.test_celery_tools import inspect
from tests.running.serving import serving
from tests.running.workers import TAKEN_UP_SOON, Cluster, on_sqlite
from worker.worker import Worker

CONTEXT = 40
REPORT = "\n\n".join(
    " ".join(f"Sentence {line} of part {part} is here." for line in range(9)) for part in range(20)
)
LIMITS = {"max_input_tokens": CONTEXT, "max_sequences": 2, "fake_step_seconds": 0.02}


def num_segments(database: Database) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(Segment)) or 0


def num_generated(cluster: Cluster) -> int:
    """Requests that the engine of the one worker has computed."""
    engines = inspect(cluster, "stats")["pool"]["tidemill"]["engines"]
    return sum(each["num_in_flight"] + each["num_by_generate"] for each in engines)


@on_sqlite
def test_a_worker_killed_in_the_reduce_repeats_no_finished_part(
    producer: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = producer.database
    contract = SummarizeContract.parse(
        # Or all of it were in the content cache, and no other attempt needed its segments.
        {"text": REPORT, "strategy": "map_reduce", "max_new_tokens": 8, "use_cache": False}
    )
    with serving(producer, **LIMITS) as worker:
        asked = requests_of(worker.worker, monkeypatch)
        (whole,) = worker.run([contract])
        expected = worker.details(whole)
        num_requests = worker.num_computed
    assert expected.coverage is not None
    num_parts, num_rounds = expected.coverage["parts"], expected.coverage["rounds"]
    assert num_rounds > 3
    assert num_segments(database) == 0, "a job that has its result needs none"

    producer.configure(**LIMITS, worker=TAKEN_UP_SOON)
    # Measuring is answered by the engine too, and passes the same moment.
    killed = producer.start_worker(TIDEMILL_FAIL_AT=f"generated:{len(asked) - 1}")
    job_id = submit_contract(contract).id
    killed.wait()
    num_kept = num_segments(database)
    assert num_parts < num_kept < num_requests, "it died in the reduce"

    with producer.worker():
        producer.wait_for(JobState.SUCCEEDED, 2)
        assert num_generated(producer) == num_requests - num_kept
    details = find_details(job_id, database=database)
    assert details is not None
    assert details.job.output == expected.job.output
    assert details.job.attempt > 1
    assert details.job.cached_parts == 0
    assert num_segments(database) == 0


def requests_of(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Every request that a worker sends to its engines from now on."""
    asked: list[Request] = []
    for client in worker._fleet.clients:

        def submit(
            requests: Iterable[Request],
            on_output: Callable[[Output], None],
            submit: Callable[..., None] = client.submit,
        ) -> None:
            own = list(requests)
            asked.extend(own)
            submit(own, on_output)

        monkeypatch.setattr(client, "submit", submit)
    return asked
