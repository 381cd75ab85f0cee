"""Where a database and Redis are: odd folders, and an `up` that is not there."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import redis

from cli.stack.embedded_valkey import EmbeddedValkey
from cli.stack.local_stack import LocalStack
from tests.integration.stack.test_up import wait_for
from tests.running.commands import CONFIG, CommandLine
from tests.running.workers import PATIENCE_SECONDS
from tests.services.servers import ONCE
from tests.unit.db.connection.test_database_url import ODD_NAMES
from worker.celery.envelope import MAX_BYTES

HANDFUL = ("a b?c=d#e", '100%41 "it\'s"', "-back\\x41slash:@ ünï", "x" * 120)


def stop(up: "subprocess.Popen[str]") -> None:
    up.send_signal(signal.SIGTERM)
    up.communicate(timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_valkey_keeps_its_files_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "valkey"
    server = EmbeddedValkey(folder)
    server.start()
    try:
        assert (folder / "appendonlydir").is_dir()
    finally:
        server.stop()


def test_the_embedded_valkey_takes_no_entry_larger_than_a_message(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path / "valkey")
    server.start()
    try:
        with redis.Redis.from_url(server.url, retry=ONCE) as client:
            with pytest.raises(redis.ConnectionError):  # it hangs up on whoever tries
                client.lpush("celery", bytes(MAX_BYTES + 1))
            assert client.llen("celery") == 0
    finally:
        server.stop()


@pytest.mark.parametrize("folder_is_there", [False, True])
def test_files_of_up_and_the_demo_are_private_to_their_user(
    tmp_path: Path, folder_is_there: bool
) -> None:
    """`.tidemill/demo` is made first, by `make demo`; `.tidemill` must not be open for that."""
    folder = tmp_path / ".tidemill"
    if folder_is_there:
        folder.mkdir(mode=0o755)
    before = os.umask(0o022)
    try:
        for data_dir in (folder / "demo", folder):
            stack = LocalStack(data_dir, tmp_path / "x.toml", redis_url="redis://127.0.0.1:1/0")
            stack.start_stores()
            stack.stop()
    finally:
        os.umask(before)
    kept = [folder / "demo", folder / "tidemill.db", folder / "demo" / "tidemill.db"]
    kept += [] if folder_is_there else [folder]
    assert {str(path): path.stat().st_mode & 0o077 for path in kept} == {
        str(path): 0 for path in kept
    }


@pytest.mark.parametrize("name", HANDFUL)
def test_up_runs_jobs_in_a_folder_of_any_name(tidemill: CommandLine, name: str) -> None:
    folder = tidemill.folder / name
    folder.mkdir()
    config = folder / "models.toml"
    config.write_text(CONFIG)
    tidemill.environment = {
        "TIDEMILL_DATA_DIR": str(folder / "data"),
        "TIDEMILL_CONFIG": str(config),
    }
    (tidemill.folder / "tidemill.toml").unlink()
    up = tidemill.start("up")
    try:
        wait_for((folder / "data" / "run.json").exists, up)
        submitted = tidemill("submit", "generate", "one two", "--wait")
        found = tidemill("results", "--format", "jsonl")
    finally:
        stop(up)
    assert submitted.status == 0, submitted.err
    assert len(found.out.splitlines()) == 1
    assert (folder / "data" / "tidemill.db").is_file()
    assert {path.name for path in tidemill.folder.iterdir()} == {name}


def test_jobs_can_be_read_and_submitted_after_up_has_stopped(tidemill: CommandLine) -> None:
    nothing = tidemill("results")
    up = tidemill.start("up")
    wait_for((tidemill.folder / ".tidemill" / "run.json").exists, up)
    first = tidemill("submit", "generate", "one two", "--wait", "--json").json
    stop(up)

    kept = tidemill("submit", "generate", "three", "--json")
    batch = tidemill("submit", "generate", "four", "--batch", "b", "--json")
    results = tidemill("results", "--format", "jsonl")
    commands = {
        "show": tidemill("show", first["id"]),
        "batches": tidemill("batches"),
        "cancel": tidemill("cancel", "--batch", "b"),
        "retry": tidemill("retry", kept.json["id"]),
    }
    status = tidemill("status", "--json")

    assert nothing.status == 1
    assert "no `tidemill up` runs" in nothing.err
    assert (kept.status, batch.status, results.status) == (0, 0, 0), kept.err + batch.err
    for ended in (kept, batch, results, *commands.values()):
        assert "no job is run until you start it again" in ended.err
    assert {name: ended.status for name, ended in commands.items()} == dict.fromkeys(commands, 0)
    assert [json.loads(line)["id"] for line in results.out.splitlines()] == [first["id"]]
    assert status.json["redis"]["reachable"] is False
    assert status.json["jobs"]["parrot"]["queued"] == 1

    up = tidemill.start("up")
    try:
        wait_for((tidemill.folder / ".tidemill" / "run.json").exists, up)
        wait_for(
            lambda: tidemill("show", kept.json["id"], "--json").json["state"] == "succeeded", up
        )
    finally:
        stop(up)


def test_jobs_are_taken_while_up_loads_its_models(tidemill: CommandLine) -> None:
    """An `up` that has its stores and is still without a worker: the record says so."""
    up = tidemill.start("up")
    wait_for((tidemill.folder / ".tidemill" / "stores.json").exists, up)
    up.send_signal(signal.SIGSTOP)  # before or after it is ready: the next line makes it before
    (tidemill.folder / ".tidemill" / "run.json").unlink(missing_ok=True)
    try:
        kept = tidemill("submit", "generate", "one two", "--json")
        results = tidemill("results", "--state", "all", "--format", "jsonl")
    finally:
        up.send_signal(signal.SIGCONT)
        stop(up)
    assert kept.status == 0, kept.err
    assert "runs no jobs yet" in kept.err
    assert kept.json["id"] in results.out


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:1/0",
        "redis://:hidden@no.such.host.invalid:6379/0",
        "redis//:hidden@127.0.0.1",
        "redis://127.0.0.1:6379/0?password=hidden",
    ],
)
def test_a_job_is_kept_though_redis_cannot_be_used(tidemill: CommandLine, url: str) -> None:
    tidemill.environment = {"TIDEMILL_DATABASE_URL": f"sqlite:///{tidemill.folder}/x.db"}
    assert tidemill("migrate").status == 0
    tidemill.environment["TIDEMILL_REDIS_URL"] = url
    kept = tidemill("submit", "generate", "one two", "--json")
    status, doctor = tidemill("status"), tidemill("doctor")
    assert kept.status == 0, kept.err
    del tidemill.environment["TIDEMILL_REDIS_URL"]
    assert tidemill("show", kept.json["id"], "--json").json["state"] == "queued"
    assert status.status == doctor.status == 1
    for ended in (kept, status, doctor):
        assert "hidden" not in ended.out + ended.err
        assert "fault in Tidemill" not in ended.err


def test_a_refused_password_keeps_the_job(tidemill: CommandLine) -> None:
    server = EmbeddedValkey(tidemill.folder / "valkey")
    server.start()
    try:
        url = server.url.replace("redis://:", "redis://:not")
        tidemill.environment = {
            "TIDEMILL_DATABASE_URL": f"sqlite:///{tidemill.folder}/x.db",
            "TIDEMILL_REDIS_URL": url,
        }
        assert tidemill("migrate").status == 0
        assert tidemill("submit", "generate", "one two").status == 0
    finally:
        server.stop()


def test_the_doctor_has_figures_of_the_disks(tidemill: CommandLine) -> None:
    tidemill.environment = {"TIDEMILL_DATABASE_URL": f"sqlite:///{tidemill.folder}/x.db"}
    assert tidemill("migrate").status == 0
    disks = [each for each in tidemill("doctor", "--json").json if each["subject"] == "disk"]
    assert len(disks) == 1
    assert "iB are free on the disk of" in disks[0]["sentence"]


def test_a_folder_whose_name_is_no_text_is_refused_by_name(tidemill: CommandLine) -> None:
    tidemill.environment = {"TIDEMILL_DATA_DIR": os.fsdecode(b"\xff")}
    ended = tidemill("up")
    assert ended.status == 1
    assert "is not UTF-8" in ended.err
