"""`tidemill keys`, and a worker whose texts are encrypted."""

import json

from sqlalchemy import select, text

from db import audit, find_job, find_results
from db.encryption.key_check import FEW, require_keys
from db.encryption.key_ring import KeyRing, new_key
from db.models import AttemptRow
from db.session import Database
from db.states import JobState
from tests.running.commands import CommandLine
from tests.running.scrapes import Scrape
from tests.running.workers import Cluster, until
from tests.samples.jobs import insert_jobs, job_row
from tests.services.servers import free_port

CANARY = "canary-4711"


def test_keys_are_made_used_listed_and_changed(stored: CommandLine) -> None:
    assert stored("submit", "generate", f"{CANARY} plain").status == 0
    none = stored("keys", "rotate")
    assert (none.status, "there are no keys" in none.err) == (1, True)

    file = stored.folder / "keys"
    assert stored("keys", "generate", "--file", "keys", "--name", "k1").status == 0
    assert file.stat().st_mode & 0o077 == 0
    stored.environment["TIDEMILL_KEYS_FILE"] = str(file)
    assert stored("submit", "generate", f"{CANARY} sealed").status == 0
    listed = stored("keys", "list", "--json").json
    assert (listed["first"], listed["keys"], listed["not_encrypted"]) == ("k1", {"k1": 1}, 1)

    assert stored("keys", "generate", "--file", "keys", "--name", "k2").status == 0
    again = stored("keys", "generate", "--file", "keys", "--name", "k2")
    assert (again.status, "a name is used once" in again.err) == (1, True)
    rotated = stored("keys", "rotate", "--json").json
    assert (rotated["key"], rotated["left"]) == ("k2", 0)
    assert rotated["sealed"]["payloads.contract"] == 2
    listed = stored("keys", "list", "--json").json
    assert (listed["keys"], listed["not_encrypted"]) == ({"k2": 2, "k1": 0}, 0)
    assert "k2" in stored("keys", "list").out

    file.write_text(file.read_text().splitlines()[0])  # without k1
    shown = stored("results", "--state", "all", "--format", "jsonl", "--input").out
    assert [json.loads(line)["input"] for line in shown.splitlines()] == [
        f"{CANARY} plain",
        f"{CANARY} sealed",
    ]
    searched = stored("results", "--text", "x")
    assert (searched.status, "outputs are encrypted" in searched.err) == (1, True)
    del stored.environment["TIDEMILL_KEYS_FILE"]
    without = stored("results", "--state", "all", "--format", "jsonl")
    assert without.status == 0  # no output yet, and the input was not asked for
    asked = stored("results", "--state", "all", "--format", "jsonl", "--input")
    assert (asked.status, "the key k2; give this process its keys" in asked.err) == (1, True)
    assert stored("audit", "list", "--json").json[0]["act"] == "rotate_keys"


def test_a_process_without_the_keys_writes_nothing_in_clear(stored: CommandLine) -> None:
    environment = stored.environment
    environment["TIDEMILL_KEYS"] = new_key("k1")
    assert stored("submit", "generate", f"{CANARY} sealed").status == 0
    rows = stored.write("rows.jsonl", {"text": CANARY})
    for others in (None, new_key("k2")):
        if others is None:
            del environment["TIDEMILL_KEYS"]
        else:
            environment["TIDEMILL_KEYS"] = others
        for arguments in (
            ("submit", "generate", CANARY),
            ("submit", "generate", str(rows), "--batch", "night"),
        ):
            refused = stored(*arguments)
            assert (refused.status, "the key k1" in refused.err) == (1, True), refused
    kept = stored("results", "--state", "all", "--format", "jsonl").out
    assert len(kept.splitlines()) == 1


def test_the_doctor_says_whether_others_can_read_the_keys(stored: CommandLine) -> None:
    file = stored.folder / "keys"
    assert stored("keys", "generate", "--file", "keys", "--name", "k1").status == 0
    config = stored.folder / "tidemill.toml"
    config.write_text(f'{config.read_text()}\n[encryption]\nkeys_file = "keys"\n')
    assert stored("submit", "generate", f"{CANARY} sealed").status == 0
    assert stored("keys", "list", "--json").json["keys"] == {"k1": 1}

    def found() -> list[tuple[str, bool, str]]:
        said = stored("doctor", "--json")
        assert said.out, said.err
        return [
            (each["subject"], each["ok"], each["sentence"])
            for each in said.json
            if each["subject"] in ("keys", "access")
        ]

    assert found() == [("keys", True, "texts are encrypted with k1")]
    file.chmod(0o640)
    assert ("access", False, f"others can read the keys in {file}; `chmod 600 {file}`") in found()


def test_a_generated_key_is_valid(stored: CommandLine) -> None:
    line = stored("keys", "generate", "--name", "k7").out
    assert KeyRing.parse(line, "it").primary == "k7"
    assert stored("keys", "generate", "--name", "k 7").status == 2


def test_a_worker_seals_what_it_writes_and_one_bad_text_fails_alone(cluster: Cluster) -> None:
    line = new_key("k1")
    sealed = Database(cluster.database.url, KeyRing.parse(line, "it"))
    rows = [job_row(model="fake", task="generate") for _ in range(6)]
    moved, *others = insert_jobs(sealed, rows, text=f"{CANARY} was sent")
    is_sqlite = sealed.dialect == "sqlite"
    with sealed.write() as session:
        session.execute(
            text(
                "UPDATE payloads SET contract = "
                "(SELECT contract FROM payloads WHERE job_id = :other) WHERE job_id = :job"
            ),
            {
                "job": moved.hex if is_sqlite else moved,
                "other": others[0].hex if is_sqlite else others[0],
            },
        )

    port = free_port()
    cluster.configure(worker={"metrics_port": port})
    with cluster.worker(TIDEMILL_KEYS=line) as worker:
        cluster.wait_until_finished(6)
        ended = Scrape.of(port).by("tidemill_jobs_ended_total", "state", "error_code")
    assert ended == {("succeeded", ""): 5, ("failed", "text_unopenable"): 1}
    with sealed.read() as session:
        attempts = session.execute(select(AttemptRow.job_id, AttemptRow.error_code)).all()
    assert attempts == [(moved, "text_unopenable")]
    assert cluster.states() == {"succeeded": 5, "failed": 1}
    found = find_job(moved, database=sealed)
    assert found is not None
    assert found.error is not None
    assert found.error.code == "text_unopenable"
    assert CANARY not in worker.log
    outputs = [each.output for each in find_results(database=sealed)]
    assert len(outputs) == 5
    with sealed.read() as session:
        stored = str(session.execute(text("SELECT output, provenance FROM results")).all())
    assert CANARY not in stored
    assert not any(each and each in stored for each in outputs)

    keyless = cluster.start_worker()
    until(lambda: keyless.process.poll() is not None, "a worker that ends")
    assert "give this process its keys" in keyless.log
    assert cluster.states() == {"succeeded": 5, "failed": 1}
    assert JobState.QUEUED not in cluster.states()
    assert audit.verify(sealed).faults == ()
    sealed.close()


def test_another_key_of_the_same_name_is_refused_before_it_fails_a_job(stored: CommandLine) -> None:
    """A worker would end every job as unopenable, and for good."""
    url = stored.environment["TIDEMILL_DATABASE_URL"]
    lines = {name: new_key(name) for name in ("k2", "k1")}
    for name in ("k1", "k2"):
        sealed = Database(url, KeyRing.parse(lines[name], "it"))
        insert_jobs(sealed, [job_row() for _ in range(FEW)], text=CANARY)
        sealed.close()
    for name in ("k2", "k1"):  # the one that seals, and an older one
        stored.environment["TIDEMILL_KEYS"] = ",".join({**lines, name: new_key(name)}.values())
        ended = stored("submit", "generate", "a b")
        assert (ended.status, f"that the key {name} has sealed opens" in ended.err) == (1, True)
        (found,) = (
            line for line in stored("doctor").out.splitlines() if line.startswith("WRONG  keys")
        )
        assert "another key of that name" in found
    stored.environment["TIDEMILL_KEYS"] = ",".join(lines.values())
    assert stored("submit", "generate", "a b").status == 0


def test_a_few_changed_texts_are_no_reason_to_refuse_all(database: Database) -> None:
    ring = KeyRing.parse(new_key("k1"), "it")
    sealed = Database(database.url, ring)
    insert_jobs(sealed, [job_row()], text=CANARY)
    other = Database(database.url, KeyRing.parse(new_key("k1"), "it"))
    insert_jobs(other, [job_row() for _ in range(FEW)], text=CANARY)  # to the first, changed
    require_keys(sealed)
    for each in (sealed, other):
        each.close()
