"""The doctor says who holds what, and what is overdue."""

import os
import resource
from typing import Any

import pytest
import redis

from cli.stack.embedded_valkey import EmbeddedValkey
from db.clock import seconds_from_now
from db.queries import worker_registry
from db.queries.jobs import dispatch
from tests.running.commands import CommandLine
from tests.running.workers import Cluster
from tests.samples.jobs import claimed_job, set_columns


def findings(cluster: Cluster) -> dict[str, dict[str, Any]]:
    return {each["subject"]: each for each in cluster.tidemill("doctor", "--json").json}


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


def test_the_doctor_finds_no_fault_with_a_live_worker(cluster: Cluster) -> None:
    with cluster.worker() as worker:
        found = findings(cluster)
    (named,) = [subject for subject in found if subject.startswith("worker ")]
    assert f":{worker.pid}:" in named
    assert found["overdue"]["ok"]
    assert all(each["ok"] for each in found.values()), found


def of_subject(findings: list[dict[str, Any]], subject: str) -> list[dict[str, Any]]:
    return [each for each in findings if each["subject"] == subject]


def test_a_file_that_is_no_database_is_a_fault_among_others(tidemill: CommandLine) -> None:
    """What else is wrong is said all the same."""
    (tidemill.folder / "x.db").write_bytes(b"no database" * 1000)
    tidemill.environment = {"TIDEMILL_DATABASE_URL": f"sqlite:///{tidemill.folder}/x.db"}
    doctor = tidemill("doctor", "--json")
    (found,) = of_subject(doctor.json, "database")
    assert (found["ok"], "file is not a database" in found["sentence"]) == (False, True)
    assert of_subject(doctor.json, "model parrot")


def test_a_database_that_the_disk_takes_no_more_of_is_a_fault(tidemill: CommandLine) -> None:
    """No file of the doctor's process may grow: the file system refuses it, as a full one does."""
    file = tidemill.folder / "x.db"
    tidemill.environment = {"TIDEMILL_DATABASE_URL": f"sqlite:///{file}"}
    assert tidemill("migrate").status == 0
    doctor = tidemill("doctor", "--json")
    assert all("takes no write" not in each["sentence"] for each in doctor.json)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size, before[1]))  # inherited
    try:
        doctor = tidemill.run("doctor", "--json", is_forked=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert doctor.status == 1
    refused = [each for each in of_subject(doctor.json, "database") if not each["ok"]]
    assert len(refused) == 1, doctor.json
    assert "it takes no write: the database failed: " in refused[0]["sentence"]
    assert "fault in Tidemill" not in doctor.err


@pytest.mark.parametrize(
    ("free_bytes", "files_left", "says"),
    [
        (0, 100, "only 0 MiB of 1.0 GiB are free on the disk of"),
        (255 * 2**20, 100, "make room, or jobs and results cannot be kept"),
        (2**30, 0, "no more files can be made on the disk of"),
    ],
)
def test_a_disk_that_is_full_or_nearly_is_a_fault(
    stored: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    free_bytes: int,
    files_left: int,
    says: str,
) -> None:
    """As the operating system tells it of such a disk."""
    figures = (4096, 4096, 2**18, free_bytes // 4096, free_bytes // 4096, 100, 100, files_left)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((*figures, 0, 255)))
    (stored.folder / ".tidemill").mkdir()  # the data folder: what `up` keeps is on its disk
    doctor = stored("doctor", "--json")
    disks = of_subject(doctor.json, "disk")
    assert disks
    for disk in disks:
        assert not disk["ok"]
        assert says in disk["sentence"]
    assert doctor.status == 1


def test_the_doctor_reports_an_append_only_file_that_cannot_be_written(
    tidemill: CommandLine,
) -> None:
    """The file is /dev/full, which refuses every byte with ENOSPC."""
    folder = tidemill.folder / "valkey"
    (folder / "appendonlydir").mkdir(parents=True)
    (folder / "appendonlydir" / "appendonly.aof.1.incr.aof").symlink_to("/dev/full")
    server = EmbeddedValkey(folder)
    server.start()
    try:
        tidemill.environment = {
            "TIDEMILL_DATABASE_URL": f"sqlite:///{tidemill.folder}/x.db",
            "TIDEMILL_REDIS_URL": server.url,
        }
        assert tidemill("migrate").status == 0
        with redis.Redis.from_url(server.url) as client:
            client.set("canary", "x")  # the write to the file comes after this answer
            with pytest.raises(redis.ResponseError, match="MISCONF"):
                until_refused(client)
        doctor = tidemill("doctor", "--json")
    finally:
        server.stop()
    assert doctor.status == 1
    faults = [each["sentence"] for each in of_subject(doctor.json, "redis") if not each["ok"]]
    assert any("its last write to its append-only file failed" in each for each in faults), faults
    assert any("it refuses to write: " in each for each in faults), faults


def until_refused(client: "redis.Redis") -> None:
    for _ in range(10_000):
        client.set("canary", "x")
