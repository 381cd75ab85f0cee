"""The checker finds the faults of sabotaged workers; a checker that cannot proves nothing."""

import re
import signal

import pytest
from sqlalchemy import exists, select

from db.clock import now
from db.models import Job
from db.states import JobState
from tests.chaos.run import SHORT, Run
from tests.running.workers import on_sqlite, until

NUM_JOBS = 16


def kinds(complaints: list[str]) -> set[str]:
    """The complaints without their ids."""
    return {re.sub(r"[0-9a-f-]{36}", "ID", each) for each in complaints}


@on_sqlite
@pytest.mark.parametrize("includes", [(), ("--include", "tests.chaos.no_recovery")])
def test_without_recovery_a_dead_workers_jobs_are_missed(
    run: Run, includes: tuple[str, ...]
) -> None:
    run.submit(NUM_JOBS)
    dying = run.cluster.start_worker(TIDEMILL_FAIL_AT="requested:4")
    assert run.bury(dying) == -signal.SIGKILL
    until(lambda: leases_are_over(run), "the end of its leases")
    with run.cluster.worker(*includes):
        # A job that is published by a sweep after these leases have ended.
        run.submit(1)
        run.cluster.wait_for(JobState.SUCCEEDED, 1 if includes else NUM_JOBS + 1)
    missed = {"job ID has not ended: running, attempt 1"} if includes else set()
    assert kinds(run.complaints()) == missed


def leases_are_over(run: Run) -> bool:
    with run.cluster.database.read() as session:
        return not session.scalar(select(exists().where(Job.lease_until >= now())))


@on_sqlite
@pytest.mark.parametrize("has_fence", [True, False])
def test_without_a_fence_a_worker_that_slept_through_its_lease_writes_over_results(
    run: Run, has_fence: bool
) -> None:
    run.cluster.configure(worker=SHORT, fake_step_seconds=0.05, max_sequences=NUM_JOBS)
    # Only the fence keeps it from writing, since it does not check the owner of its jobs.
    includes = ["tests.chaos.no_watch", *([] if has_fence else ["tests.chaos.no_fence"])]
    with run.cluster.worker("--include", ",".join(includes)) as sleeper:
        run.submit(NUM_JOBS, num_tokens=20)
        run.cluster.wait_for(JobState.RUNNING, NUM_JOBS)
        sleeper.pause(run.cluster.database_url)
        with run.cluster.worker():
            run.wait_until_finished()
        sleeper.process.send_signal(signal.SIGCONT)
        sleeper.stop()  # it has written its outcomes
    assert run.cluster.states() == {JobState.SUCCEEDED: NUM_JOBS}
    twice = {"job ID is succeeded, with the writes {'result insert': 2, 'result delete': 1}"}
    assert run.complaints() == [] if has_fence else twice <= kinds(run.complaints())
