"""The doctor says who holds what, and what is overdue."""

import json
import sys
from typing import Any

from db.clock import seconds_from_now
from db.queries import dispatch, worker_registry
from tests.jobs import claimed_job, set_columns
from tests.workers import Cluster


def findings(cluster: Cluster) -> dict[str, dict[str, Any]]:
    ended = cluster.run(sys.executable, "-P", "-m", "cli", "doctor", "--json")
    assert "Traceback" not in ended.stderr
    return {each["subject"]: each for each in json.loads(ended.stdout)}


def test_a_worker_is_named_with_what_it_holds_and_a_dead_one_with_what_it_left(
    cluster: Cluster,
) -> None:
    with cluster.database.write() as session:
        worker_registry.report_worker(session, "alive", {"fake": 8}, 0, 60)
        assert dispatch.lead(session, "dispatcher", "alive", 60)
    claimed_job(cluster.database, "alive", model="fake")
    left = claimed_job(cluster.database, "dead", model="fake")
    set_columns(cluster.database, [left.job_id], lease_until=seconds_from_now(-60))

    found = findings(cluster)

    assert found["workers"]["ok"]
    assert found["worker alive"]["ok"]
    assert "serves fake, holds 1 job, the first since" in found["worker alive"]["sentence"]
    assert found["worker alive"]["sentence"].endswith("it sends out what is due")
    assert not found["worker dead"]["ok"]
    assert "is silent and holds 1 job" in found["worker dead"]["sentence"]
    assert not found["overdue"]["ok"]
    assert "1 job left by dead workers" in found["overdue"]["sentence"]


def test_of_a_worker_that_works_nothing_is_overdue(cluster: Cluster) -> None:
    with cluster.worker() as worker:
        found = findings(cluster)
    (named,) = [subject for subject in found if subject.startswith("worker ")]
    assert f":{worker.pid}:" in named
    assert found["overdue"]["ok"]
    assert all(each["ok"] for each in found.values()), found
