"""A document through real workers: killed in the middle, it is taken up where it was."""

from sqlalchemy import func, select

from db.models import Result, Segment
from db.reading import find_details
from db.session import Database
from db.states import JobState
from tasks.summarize import submit
from tests.workers import Cluster, on_sqlite, until

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
    code = (
        "import json; from tasks.app import app; "
        "print(sum(each['num_in_flight'] + each['num_by_generate'] "
        "for worker in app.control.inspect().stats().values() "
        "for each in worker['pool']['tidemill']['engines']))"
    )
    return int(cluster.python(code).split()[-1])


@on_sqlite
def test_a_worker_killed_in_the_reduce_repeats_no_finished_part(producer: Cluster) -> None:
    producer.configure(**LIMITS, worker={"lease_seconds": 2.0, "renew_seconds": 0.5})
    database = producer.database

    with producer.worker():
        whole = submit(text=REPORT, strategy="map_reduce", max_new_tokens=8).id
        producer.wait_for(JobState.SUCCEEDED)
        num_requests = until(lambda: num_generated(producer), "a count")
    with database.read() as session:
        expected = session.scalars(select(Result).where(Result.job_id == whole)).one()
        assert expected.coverage is not None
        num_parts = expected.coverage["parts"]
    assert num_segments(database) == 0, "a job that has its result needs none"
    assert num_requests > num_parts + 2

    # Measuring is answered by the engine too, and passes the same moment: some before the parts.
    killed = producer.start_worker(TIDEMILL_FAIL_AT=f"generated:{num_requests + 2}")
    job_id = submit(text=REPORT, strategy="map_reduce", max_new_tokens=8).id
    killed.wait()
    num_kept = num_segments(database)
    assert num_kept > num_parts // 2

    with producer.worker():
        producer.wait_for(JobState.SUCCEEDED, 2)
        assert num_generated(producer) == num_requests - num_kept
    details = find_details(job_id, database=database)
    assert details is not None
    assert details.job.output == expected.output
    assert details.job.attempt > 1
    assert num_segments(database) == 0
