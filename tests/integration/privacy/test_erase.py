"""`tidemill export`, `erase` and `backup`: what is kept of somebody, and that it is gone."""

import json
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text
from uuid_utils.compat import uuid7

from db import audit, find_job
from db.encryption.key_ring import KeyRing, new_key
from db.models import Batch, Job, QuarantinedMessage, Segment
from db.outcome import Answer, FinishedSegment, Outcome
from db.queries import inserts
from db.session import Database
from db.states import JobState
from db.upkeep import erasure
from db.upkeep.erasure import Person
from tests.running.commands import CommandLine
from tests.running.workers import Cluster
from tests.samples.jobs import claim, insert_job, insert_jobs, job, job_row, payload, states
from worker.committer import Committer
from worker.settings import Settings

CANARY = "canary-4711"
# Pages of SQLite's file are 4 KiB: long texts lie in pages of their own.
LONG = f"{CANARY} " * 2000
SEND = "from tasks.app import app; app.send_task('tasks.generate', kwargs={'text': 'x'})"
METADATA = {"patient": "seven"}


def database_of(stored: CommandLine) -> Database:
    return Database(stored.environment["TIDEMILL_DATABASE_URL"])


@contextmanager
def committer(database: Database) -> Iterator[Committer]:
    committer = Committer(database, Settings(), lambda outcomes: None)
    committer.start()
    yield committer
    committer.stop()


def said(text: str = LONG) -> Answer:
    return Answer(
        output=text,
        alternatives=(CANARY,),
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=2,
        provenance={"settings": {"stop": [CANARY]}},
        coverage={"glossary": CANARY},
        reasoning=LONG,
    )


def insert_texts(database: Database, **fields: Any) -> dict[str, UUID]:
    """Jobs in several states, every column of a text with the canary in it."""
    made = {
        name: insert_job(database, metadata=METADATA, custom_id=f"{CANARY}-{name}", **fields)
        for name in ("succeeded", "failed", "retried", "running", "queued")
    }
    with database.write() as session:
        for each in made.values():
            row = session.get_one(Job, each)
            row.idempotency_key = f"{CANARY}-{each}"
        session.execute(
            inserts.table(QuarantinedMessage).insert(),
            [
                message(made["succeeded"], b"not even JSON " + LONG.encode()),
                message(None, body_of({"text": LONG, "metadata": METADATA, **tenant_of(fields)})),
            ],
        )
    for each in made.values():
        with database.write() as session:
            payload = session.get_one(erasure.erasure.Payload, each)
            payload.contract = {"text": LONG}
    fences = dict(zip(made, claim(database, list(made.values())[:4]), strict=False))
    with committer(database) as writing:
        for position, fence in enumerate(fences.values()):
            writing.keep(FinishedSegment(fence, position, {"output": LONG}))
        writing.put(Outcome.succeeded(fences["succeeded"], said(), has_segments=True))
        writing.put(Outcome.failed(fences["failed"], "engine_crash", f"it said {CANARY}"))
        writing.put(Outcome.retried(fences["retried"], "engine_crash", f"it said {CANARY}", 60))
    return made


def tenant_of(fields: dict[str, Any]) -> dict[str, str]:
    return {"tenant": fields["tenant"]} if "tenant" in fields else {}


def body_of(fields: dict[str, Any]) -> bytes:
    return json.dumps([[], fields, {}]).encode()


def message(job_id: UUID | None, body: bytes) -> dict[str, Any]:
    return {
        "id": uuid7(),
        "arrived_at": erasure.datetime.fromisoformat("2026-01-31T00:00:00+00:00"),
        "queue": "celery",
        "reason": "not_json",
        "task": "tasks.generate",
        "job_id": job_id,
        "num_bytes": len(body),
        "body": body,
    }


def places_of(database: Database, text: str) -> list[str]:
    """Where in the tables, or in SQLite's files, a text is."""
    found = []
    with database.read() as session:
        for table in Job.metadata.sorted_tables:
            for row in session.execute(select(table)):
                if text in str(row):
                    found.append(table.name)
    if database.file is not None:
        for path in database.file.parent.glob(f"{database.file.name}*"):
            if text.encode() in path.read_bytes():
                found.append(path.name)
    return found


@pytest.mark.parametrize("by", ["tenant", "metadata"])
def test_erased_texts_are_overwritten_in_the_file(stored: CommandLine, by: str) -> None:
    database = database_of(stored)
    made = insert_texts(database, tenant="acme")
    with database.write() as session:
        session.add(Batch(id=uuid7(), name="b", tenant="acme", metadata_={**METADATA, "x": CANARY}))
    other = insert_job(database, tenant="other", metadata={"patient": "eight"})
    assert CANARY in payload(database, made["queued"]).contract["text"]
    assert places_of(database, CANARY)
    arguments = ("--tenant", "acme") if by == "tenant" else ("--metadata", "patient=seven")

    dry = stored("erase", *arguments, "--dry-run", "--json").json
    assert dry == {
        "done": False,
        "jobs": 5,
        "cancelled": 3,
        "messages": 1,
        "batches": 1,
        "unreadable_messages": 1,
    }
    ended = stored("erase", *arguments, "--yes", "--json")

    assert (ended.status, ended.json["jobs"], ended.json["cancelled"]) == (0, 5, 3)
    assert (ended.json["messages"], ended.json["batches"]) == (2, 1)
    assert places_of(database, CANARY) == []
    assert places_of(database, "seven") == []
    assert states(database) == {"succeeded": 1, "failed": 1, "cancelled": 3, "queued": 1}
    found = find_job(made["succeeded"], database=database)
    assert found is not None
    assert (found.output, found.completion_tokens, found.metadata) == (None, 2, {})
    assert found.erased_at is not None
    assert payload(database, other).contract == {"text": "three words long"}
    assert "erased for a person who asked" in stored("show", str(made["succeeded"])).out
    retried = stored("retry", str(made["failed"]))
    assert "its text was erased, so there is nothing to run" in retried.out
    assert stored("erase", *arguments, "--yes", "--json").json["jobs"] == 0

    acts = [(entry.act, entry.objects) for entry in audit.entries(database, act="erase")]
    assert sorted(acts[0][1]["jobs"]) == sorted(map(str, made.values()))
    assert "seven" not in str(acts)
    assert audit.verify(database).faults == ()
    database.close()


def test_texts_deleted_by_an_earlier_worker_are_scrubbed_too(stored: CommandLine) -> None:
    database = database_of(stored)
    fence = claim(database, [insert_job(database, tenant="acme")])[0]
    with committer(database) as writing:
        for position in range(5):
            writing.keep(FinishedSegment(fence, position, {"output": LONG}))
    with committer(database) as writing:
        writing.put(Outcome.succeeded(fence, said("short"), has_segments=True))
    with database.read() as session:
        assert session.scalars(select(Segment.position)).all() == []

    assert stored("erase", "--tenant", "acme", "--yes").status == 0

    assert places_of(database, CANARY) == []
    database.close()


def test_erasing_a_running_job_fences_it_off_and_leaves_no_text(database: Database) -> None:
    job_id = insert_job(database, metadata=METADATA)
    (fence,) = claim(database, [job_id])

    assert erasure.erase(database, Person(metadata=METADATA)).cancelled == 1
    with committer(database) as writing:
        writing.keep(FinishedSegment(fence, 0, {"output": LONG}))
        writing.put(Outcome.succeeded(fence, said()))
    with committer(database) as writing:
        writing.put(Outcome.failed(fence, "engine_crash", CANARY))

    assert erasure.scrub(database)
    assert places_of(database, CANARY) == []
    assert job(database, job_id).state == JobState.CANCELLED


def test_a_segment_that_is_being_written_goes_with_its_job(database: Database) -> None:
    """The committer has looked whether its attempt may write, and then the job is erased."""
    if database.dialect == "sqlite":
        return  # one writer at a time
    job_id = insert_job(database, metadata=METADATA)
    (fence,) = claim(database, [job_id])
    writing = Committer(database, Settings(), lambda outcomes: None)
    with database.write() as session:
        running = writing._running(session, [fence])
        writing._write_segments(session, [FinishedSegment(fence, 0, {"output": LONG})], running)
        with database.write() as other:
            # It is left alone until that is committed.
            assert erasure.erasure.erase_jobs(other, [job_id])[0] == []
    erased = erasure.erase(database, Person(metadata=METADATA))

    assert erased.jobs == 1
    assert places_of(database, CANARY) == []


def test_a_person_is_matched_by_every_metadata_pair(database: Database) -> None:
    insert_job(database, metadata={"a": "1", "b": "2"}, tenant="acme")
    insert_job(database, metadata={"a": "1", "b": "3"}, tenant="acme")
    insert_job(database, metadata={"a": "1", "b": "2"})

    assert erasure.count(database, Person(metadata={"a": "1"})).jobs == 3
    assert erasure.count(database, Person(metadata={"a": "1", "b": "2"})).jobs == 2
    assert erasure.count(database, Person(tenant="acme", metadata={"b": "2"})).jobs == 1
    assert erasure.count(database, Person(tenant="nobody")).jobs == 0


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (body_of({"text": "x"}), {"text": "x"}),
        (json.dumps({"body": "W1tdLCB7ImEiOiAiYiJ9LCB7fV0=",
                     "properties": {"body_encoding": "base64"}}).encode(), {"a": "b"}),
        (json.dumps({"body": '[[], {"a": "b"}, {}]', "properties": {}}).encode(), {"a": "b"}),
        (b"\xff\x00", None),
        (b"[]", None),
        (b'{"body": 7}', None),
        (b'[[], "text", {}]', None),
        (b"[" * 100_000, None),
        (b'{"text": "x", "tenant": "t"}', {"text": "x", "tenant": "t"}),
        (b'{"headers": {"tenant": "t"}, "properties": {}}', None),
        (b'[["whose?"], {}, {}]', None),
        (b'[["x"], {"tenant": "t"}, {}]', {"tenant": "t"}),
    ],
)  # fmt: skip
def test_the_person_of_a_message_is_read_from_its_fields(
    body: bytes, fields: dict[str, str] | None
) -> None:
    assert erasure.message_fields(body) == fields


@pytest.mark.parametrize(
    ("person", "fields"),
    [
        (Person(tenant="5"), {"tenant": 5}),
        (Person(tenant="default"), {"tenant": None}),
        (Person(metadata={"patient": "7"}), {"metadata": {"patient": 7}}),
        (Person(metadata={"patient": "true"}), {"metadata": {"patient": True}}),
        (
            Person(metadata={"patient": "7"}, tenant="t"),
            {"metadata": {"patient": 7}, "tenant": "t"},
        ),
    ],
)
def test_a_person_is_found_in_a_message_by_values_of_another_type(
    person: Person, fields: dict[str, Any]
) -> None:
    """That they are of another type may be why it is in the quarantine."""
    assert person.sent(fields)
    assert not Person(tenant="None").sent(fields)
    assert not Person(metadata={"patient": "8"}).sent(fields)


def test_a_text_that_cannot_be_decrypted_prevents_no_export_or_erasure(stored: CommandLine) -> None:
    """Neither one of theirs nor another's; and without the keys nothing is erased by half."""
    line = new_key("k1")
    sealed = Database(stored.environment["TIDEMILL_DATABASE_URL"], KeyRing.parse(line, "it"))
    moved, whole = (insert_job(sealed, tenant="acme", custom_id=CANARY) for _ in range(2))
    insert_job(sealed, tenant="another")
    theirs = message(None, body_of({"text": LONG, "tenant": "acme"}))
    anybodys = message(None, body_of({"text": LONG}))
    with sealed.write() as session:
        session.execute(inserts.table(QuarantinedMessage).insert(), [theirs, anybodys])
        for of, key, column, ids in (
            ("payloads", "job_id", "contract", (moved, whole)),
            ("quarantined_messages", "id", "body", (anybodys["id"], theirs["id"])),
        ):
            here, there = (each.hex if sealed.dialect == "sqlite" else each for each in ids)
            session.execute(
                text(
                    f"UPDATE {of} SET {column} = (SELECT {column} FROM {of} WHERE {key} = :there)"
                    f" WHERE {key} = :here"
                ),
                {"here": here, "there": there},
            )

    for command in (("erase", "--yes"), ("erase", "--dry-run"), ("export",)):
        ended = stored(*command, "--tenant", "acme")
        assert (ended.status, "give this process its keys" in ended.err) == (1, True), command
    assert job(sealed, whole).erased_at is None
    stored.environment["TIDEMILL_KEYS"] = line

    ended = stored("export", "--tenant", "acme")
    jobs = {each["id"]: each for each in map(json.loads, ended.out.splitlines())}
    assert jobs[str(moved)]["payload"]["contract"] is None
    assert jobs[str(moved)]["unopenable"] == [f"payloads.contract/{moved.hex}"]
    assert jobs[str(whole)]["payload"]["contract"] == {"text": "three words long"}
    assert "1 job with texts that do not open" in ended.err
    listed = {each["id"]: each for each in stored("messages", "--json").json}
    assert [listed[str(each["id"])]["is_whole"] for each in (theirs, anybodys)] == [True, False]
    assert stored("messages", str(anybodys["id"]), "--raw").status == 1

    ended = stored("erase", "--tenant", "acme", "--yes", "--json")
    assert ended.status == 0
    counts = (ended.json["jobs"], ended.json["messages"], ended.json["unreadable_messages"])
    assert counts == (2, 1, 1)
    with sealed.read() as session:
        assert session.scalars(select(QuarantinedMessage.id)).all() == [anybodys["id"]]
    assert job(sealed, moved).custom_id is None
    sealed.close()


def test_erase_without_a_person_is_refused(stored: CommandLine) -> None:
    for command in ("erase", "export"):
        ended = stored(command)
        assert ended.status == 2
        assert "say whose" in ended.err
    ended = stored("erase", "--tenant", "acme")
    assert (ended.status, "say --yes" in ended.err) == (1, True)


def test_an_export_has_all_rows_of_the_person_and_no_others(stored: CommandLine) -> None:
    database = database_of(stored)
    made = insert_texts(database)
    with database.write() as session:
        session.add(Batch(id=uuid7(), name="b", tenant="x", metadata_=METADATA))
    insert_job(database, metadata={"patient": "eight"}, custom_id="another's")

    ended = stored("export", "--metadata", "patient=seven", "-o", "seven.jsonl")

    assert (ended.status, ended.err) == (0, "7 lines written\n")
    written = (stored.folder / "seven.jsonl").read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    assert [line["kind"] for line in lines] == ["batch", *["job"] * 5, "message"]
    jobs = {line["id"]: line for line in lines if line["kind"] == "job"}
    assert sorted(jobs) == sorted(map(str, made.values()))
    whole = jobs[str(made["succeeded"])]
    assert whole["payload"]["contract"] == {"text": LONG}
    assert whole["payload"]["metadata"] == METADATA
    assert whole["result"]["output"] == LONG
    assert len(whole["messages"]) == 1
    assert jobs[str(made["failed"])]["attempts"][0]["error_message"] == f"it said {CANARY}"
    assert jobs[str(made["running"])]["segments"][0]["output"] == {"output": LONG}
    assert "another's" not in written
    piped = stored("export", "--metadata", "patient=seven")
    assert [json.loads(line) for line in piped.out.splitlines()] == lines
    assert [entry.objects for entry in audit.entries(database, act="export")] == [
        {"metadata_keys": ["patient"]}
    ] * 2
    database.close()


def test_a_backup_is_whole_while_jobs_are_written(stored: CommandLine) -> None:
    database = database_of(stored)
    insert_job(database)
    ended = stored("backup", "copy.db", "--json")
    if database.dialect == "postgresql":
        assert ended.status == 1
        assert "pg_dump" in ended.err
        assert not (stored.folder / "copy.db").exists()
        database.close()
        return
    copy = stored.folder / "copy.db"
    assert (ended.status, ended.json["jobs"]) == (0, 1)
    assert ended.json["bytes"] == copy.stat().st_size
    assert copy.stat().st_mode & 0o077 == 0
    assert [path.name for path in stored.folder.glob("copy.db*")] == ["copy.db"]
    restored = Database(f"sqlite:///{copy}")
    assert states(restored) == {"queued": 1}
    assert audit.verify(restored).faults == ()
    restored.close()
    again = stored("backup", "copy.db")
    assert (again.status, "is there already" in again.err) == (1, True)
    assert "there is no folder" in stored("backup", "none/copy.db").err
    database.close()


def test_a_backup_that_the_disk_has_no_room_for_leaves_nothing(tidemill: CommandLine) -> None:
    """The file system refuses it, as a full one does; what lies beside the copy holds texts too."""
    tidemill.environment = {"TIDEMILL_DATABASE_URL": f"sqlite:///{tidemill.folder}/x.db"}
    assert tidemill("migrate").status == 0
    database = database_of(tidemill)
    insert_jobs(database, [job_row()], text=CANARY * 200_000)
    assert erasure.scrub(database)  # all of it in the file, and nothing in the log
    (tidemill.folder / "copy.db.part-journal").write_text("of one that was killed")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        ended = tidemill("backup", "copy.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert (ended.status, "the copy could not be made: " in ended.err) == (1, True), ended.err
    assert [each.name for each in tidemill.folder.glob("copy*")] == []
    assert tidemill("backup", "copy.db").status == 0
    database.close()


def test_a_backup_of_a_broken_database_is_refused(tmp_path: Path, stored: CommandLine) -> None:
    database = database_of(stored)
    if database.file is None:
        return
    with closing(sqlite3.connect(database.file)) as connection:  # which holds no key to it
        connection.execute("INSERT INTO segments VALUES ('x', 0, '{}', '2026-01-31')")
        connection.commit()
    ended = stored("backup", "copy.db")
    assert (ended.status, "is not sound" in ended.err) == (1, True)
    assert list(stored.folder.glob("copy.db*")) == []


def test_the_audit_names_the_actor_of_submit_cancel_and_retry(stored: CommandLine) -> None:
    stored.write("a.jsonl", *({"text": f"{CANARY} {n}"} for n in range(5)))
    assert stored("submit", "generate", "--file", "a.jsonl", "--batch", "b").status == 0
    assert stored("submit", "generate", "one more").status == 0
    assert stored("cancel", "--batch", "b").status == 0
    assert stored("retry", "--batch", "b", "--state", "cancelled").status == 0

    listed = stored("audit", "list", "--json").json
    acts = [entry["act"] for entry in listed]
    assert acts == ["retry", "cancel", "submit", "submit", "migrate"]
    assert all(entry["actor"].startswith("user ") for entry in listed)
    assert listed[1]["objects"]["num_jobs"] == 5
    assert list(listed[2]["objects"]) == ["jobs"]
    assert list(listed[3]["objects"]) == ["batch"]
    assert CANARY not in json.dumps(listed)
    assert stored("audit", "verify", "--head", "0" * 63).status == 2, "a slip is no alarm"
    verified = stored("audit", "verify")
    assert verified.status == 0
    assert "5 entries, none changed and none missing" in verified.out
    assert "cancel" in stored("audit", "list", "--act", "cancel").out
    exported = stored("audit", "export", "--act", "submit").out.splitlines()
    assert [json.loads(line)["sequence"] for line in exported] == [2, 3]
    assert stored("audit", "list", "--act", "sing").status == 2

    database = database_of(stored)
    with database.write() as session:
        entry = session.get_one(audit.AuditEntry, 3)
        session.delete(entry)
    database.close()
    broken = stored("audit", "verify", "--json")
    assert (broken.status, broken.json["faults"]) == (1, ["entry 3 is missing"])
    assert "entry 3 is missing" in stored("audit", "verify").err


def test_submits_can_be_left_out_of_the_audit(stored: CommandLine) -> None:
    config = stored.folder / "tidemill.toml"
    config.write_text(config.read_text() + "\n[audit]\nsubmits = false\n")
    assert stored("submit", "generate", "x").status == 0
    assert [each["act"] for each in stored("audit", "list", "--json").json] == ["migrate"]
    config.write_text(config.read_text().replace("false", '"no"'))
    assert "audit.submits is 'no'; it can be true or false" in stored("submit", "generate", "x").err


def test_a_celery_message_is_an_act_of_its_origin(producer: Cluster) -> None:
    with producer.worker():
        producer.python(SEND)
        producer.wait_for(JobState.SUCCEEDED)
    (entry,) = audit.entries(producer.database, act="submit")
    assert entry.actor.startswith("celery gen")
    assert audit.verify(producer.database).faults == ()
