"""Encryption at rest: texts are sealed for their place, whoever writes, and keys change."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    JSON,
    LargeBinary,
    Text,
    cast,
    insert,
    literal_column,
    select,
    text,
    type_coerce,
    update,
)
from uuid_utils.compat import uuid7

from db import find_job, find_results
from db.encryption import rotation
from db.encryption.key_ring import (
    MARK,
    EncryptionError,
    KeyRing,
    KeysUnusable,
    Unopenable,
)
from db.encryption.rotation import sealed_columns, values_by_key
from db.models import AttemptRow, Base, Payload, QuarantinedMessage, Result, Segment
from db.outcome import Answer, Fence, FinishedRequest, FinishedSegment, Outcome
from db.queries import inserts, quarantine
from db.queries.jobs import claims
from db.queries.jobs import segments as segment_queries
from db.reading.job_details import find_details
from db.reading.results import SearchImpossible
from db.session import Database
from db.upkeep import erasure
from db.upkeep.erasure import Person
from tests.samples.jobs import claim, insert_job, insert_jobs, job_row
from worker.committer import Committer
from worker.settings import Settings

CANARY = "canary-4711"


def ring(*names: str) -> KeyRing:
    return KeyRing({name: name.encode().ljust(32, b".") for name in names})


@pytest.fixture
def sealed(database: Database) -> Iterator[Database]:
    """A database whose texts are sealed with k1."""
    opened = Database(database.url, ring("k1"))
    yield opened
    opened.close()


def finished(database: Database, said: str = f"it said {CANARY}") -> UUID:
    (job_id,) = insert_jobs(database, [job_row()], text=f"{CANARY} was sent")
    (fence,) = claim(database, [job_id])
    finish(database, fence, said)
    refused = {"job_id": job_id, "attempt": 9, "next_state": "queued", "output": CANARY}
    with database.write() as session:
        session.execute(inserts.table(AttemptRow).insert(), [refused])
    return job_id


def finish(database: Database, fence: Fence, said: str) -> None:
    answer = Answer(
        output=said,
        alternatives=(f"or {CANARY}",),
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=2,
        provenance={"settings": {"stop": [CANARY]}},
        coverage={"note": CANARY},
        reasoning=f"I think of {CANARY}",
    )
    writing = Committer(database, Settings(), lambda outcomes: None)
    writing.start()
    key = fence.job_id.bytes * 2
    writing.remember(FinishedRequest(fence, key, "default", CANARY.encode()))
    writing.keep(FinishedSegment(fence, 0, {"output": CANARY}))
    writing.put(Outcome.succeeded(fence, answer))
    writing.stop()


def set_aside(database: Database, body: bytes = CANARY.encode()) -> UUID:
    message = uuid7()
    row = {"id": message, "queue": "celery", "reason": "not_json", "num_bytes": 1, "body": body}
    arrived_at = erasure.datetime.fromisoformat("2026-01-31T00:00:00+00:00")
    with database.write() as session:
        quarantine.insert_quarantined(session, [{**row, "arrived_at": arrived_at}])
    return message


def stored(database: Database) -> str:
    """Every row of every table as it lies in the database."""
    with database.read() as session:
        return str(
            [
                session.connection().exec_driver_sql(f"SELECT * FROM {table.name}").all()
                for table in Base.metadata.sorted_tables
            ]
        )


def test_what_is_stored_is_sealed_and_what_is_read_is_plain(sealed: Database) -> None:
    job_id = finished(sealed)
    message = set_aside(sealed)

    assert CANARY not in stored(sealed)
    details = find_details(job_id, database=sealed)
    assert details is not None
    assert details.job.output == f"it said {CANARY}"
    assert details.job.alternatives == (f"or {CANARY}",)
    assert details.contract == {"text": f"{CANARY} was sent"}
    assert details.provenance == {"settings": {"stop": [CANARY]}}
    assert details.coverage == {"note": CANARY}
    assert details.job.reasoning == f"I think of {CANARY}"
    (found,) = find_results(database=sealed, with_input=True)
    assert found.input == f"{CANARY} was sent"
    with sealed.read() as session:
        ((_, position, output),) = session.execute(
            segment_queries.segments_between([(job_id, 0, 9)])
        )
        assert (position, output) == (0, {"output": CANARY})
        assert dict(session.execute(claims.payloads_of([job_id])).all()) == {
            job_id: details.contract
        }
        assert session.get_one(QuarantinedMessage, message).body == CANARY.encode()
    exported = list(erasure.export(sealed, Person(tenant="default")))
    assert exported[0]["result"]["output"] == f"it said {CANARY}"


def test_every_column_that_can_hold_a_text_is_sealed_or_named_here() -> None:
    """Who adds a column says with this what is in it; what is sealed is also erased, below."""
    open_columns = {
        "attempts.error_message",  # our own sentences
        "jobs.error_message",
        "batches.metadata",  # what rows are found by
        "payloads.metadata",
        "audit.objects",  # ids and numbers
        "model_cards.content",  # of the model
        "cache_entries.key",  # a digest
        "workers.engines",
        "workers.room",
    }
    can_hold_a_text = {
        f"{table.name}.{column.name}"
        for table in Base.metadata.sorted_tables
        for column in table.c
        if isinstance(column.type, Text | JSON | LargeBinary)
    }
    assert can_hold_a_text == open_columns


def test_whatever_is_sealed_is_erased(sealed: Database) -> None:
    job_id = finished(sealed)
    with sealed.write() as session:
        session.execute(
            inserts.table(Segment).insert(),
            [{"job_id": job_id, "position": 7, "output": {"output": CANARY}}],
        )
    message = set_aside(sealed, json.dumps([[], {"text": CANARY}, {}]).encode())
    for column, counts in values_by_key(sealed, sealed.keys).items():
        assert counts["k1"] > 0, f"the test leaves {column} empty"

    erasure.erase(sealed, Person(tenant="default"))

    assert message
    for column, counts in values_by_key(sealed, sealed.keys).items():
        assert not any(counts.values()), column


def test_a_job_without_a_result_and_an_empty_text_are_read(sealed: Database) -> None:
    waiting = insert_job(sealed)
    job_id = finished(sealed, said="")
    for each, output in ((waiting, None), (job_id, "")):
        found = find_job(each, database=sealed)
        assert found is not None
        assert found.output == output


@pytest.mark.parametrize("bytes_", [b"", b"\x00\xff", MARK.encode(), f"{MARK}k1$AAAA".encode()])
@pytest.mark.parametrize("with_keys", [True, False])
def test_every_body_of_a_message_comes_back(
    database: Database, sealed: Database, bytes_: bytes, with_keys: bool
) -> None:
    used = sealed if with_keys else database
    message = set_aside(used, bytes_)
    with used.read() as session:
        assert session.get_one(QuarantinedMessage, message).body == bytes_


@pytest.mark.parametrize("output", [f"{MARK}k1$AAAA", f"{MARK}$plain$x", f"{MARK}$plain$", MARK])
def test_an_output_that_looks_sealed_is_read_as_it_was(
    database: Database, sealed: Database, output: str
) -> None:
    """A user can make a model say anything."""
    job_id = finished(database, output)
    for each in (database, sealed):
        found = find_job(job_id, database=each)
        assert found is not None
        assert found.output == output
    assert values_by_key(sealed, sealed.keys)["results.output"] == {"k1": 0, "": 1, "?": 0}


def test_a_sealed_value_opens_in_its_place_only(sealed: Database) -> None:
    one, other = finished(sealed), finished(sealed, "another")
    for model, column in ((Payload, Payload.contract), (Result, Result.output)):
        with sealed.write() as session:
            raw = cast(column, Text) if model is Payload else type_coerce(column, Text)
            (theirs,) = session.execute(
                select(literal_column(str(raw.compile(sealed.engine))))
                .select_from(model)
                .where(model.job_id == other)
            ).one()
            session.execute(
                text(f"UPDATE {model.__tablename__} SET {column.key} = :value WHERE job_id = :id"),
                {"value": theirs, "id": one.hex if sealed.dialect == "sqlite" else one},
            )
        with pytest.raises(Unopenable, match="changed or moved"):
            find_details(one, database=sealed)
        assert find_details(other, database=sealed) is not None


def test_segments_and_alternatives_are_no_place_for_each_other(sealed: Database) -> None:
    job_id = finished(sealed)
    row = {"value": None, "id": job_id.hex if sealed.dialect == "sqlite" else job_id}
    with sealed.write() as session:
        session.execute(text("UPDATE results SET provenance = coverage WHERE job_id = :id"), row)
    with pytest.raises(Unopenable):
        find_details(job_id, database=sealed)


def test_a_sealed_value_without_the_key_of_its_row_is_refused(sealed: Database) -> None:
    job_id = finished(sealed)
    for statement in (
        update(Result).where(Result.job_id == job_id).values(output="a text"),
        insert(inserts.table(Payload)).values(job_id=uuid7(), contract={"a": 1}, metadata={}),
    ):
        with pytest.raises(Exception, match="without its row"), sealed.write() as session:
            session.execute(statement)


def test_an_error_names_the_missing_keys(database: Database, sealed: Database) -> None:
    job_id = finished(sealed)
    with pytest.raises(KeysUnusable, match=r"the key k1; give this process its keys"):
        find_job(job_id, database=database)
    other = Database(database.url, ring("k2"))
    with pytest.raises(KeysUnusable, match="the key k1, which is not among k2"):
        find_job(job_id, database=other)
    other.close()
    wrong = Database(database.url, KeyRing({"k1": b"x" * 32}))
    with pytest.raises(Unopenable):
        find_job(job_id, database=wrong)
    wrong.close()


def test_a_search_for_text_is_refused_in_words(sealed: Database) -> None:
    with pytest.raises(SearchImpossible, match="outputs are encrypted"):
        find_results(text="a", database=sealed)


def test_rotation_seals_what_others_and_none_have_sealed(
    database: Database, sealed: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "ROWS", 2)
    plain = [finished(database) for _ in range(5)]
    old = [finished(sealed) for _ in range(3)]
    set_aside(database), set_aside(sealed)
    both = Database(database.url, ring("k2", "k1"))
    counts = values_by_key(both, both.keys)
    assert counts["payloads.contract"] == {"k2": 0, "k1": 3, "": 5, "?": 0}
    assert counts["quarantined_messages.body"] == {"k2": 0, "k1": 1, "": 1, "?": 0}
    alone = Database(database.url, ring("k2"))
    assert values_by_key(alone, alone.keys)["segments.output"] == {"k2": 0, "": 5, "?": 3}

    done = rotation.rotate(both, pause=lambda _: None)

    assert done == dict.fromkeys(done, 8) | {"quarantined_messages.body": 2}
    assert set(done) == {column.name for column in sealed_columns()}
    assert CANARY not in stored(both)
    for job_id in (*plain, *old):
        found = find_details(job_id, database=alone)
        assert found is not None
        assert found.job.output == f"it said {CANARY}"
        assert found.contract == {"text": f"{CANARY} was sent"}
    assert not any(rotation.rotate(both, pause=lambda _: None).values())
    alone.close()
    both.close()


def test_rotation_overwrites_nothing_that_changed_meanwhile(
    sealed: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = insert_job(sealed)
    both = Database(sealed.url, ring("k2", "k1"))
    read = Database.read
    rewritten: list[bool] = []

    def erase_after_the_page(self: Database) -> Any:
        from contextlib import contextmanager

        @contextmanager
        def reading() -> Iterator[Any]:
            with read(self) as session:
                yield session
            if not rewritten:
                rewritten.append(True)
                monkeypatch.setattr(Database, "read", read)
                erasure.erase(both, Person(tenant="default"))

        return reading()

    monkeypatch.setattr(Database, "read", erase_after_the_page)
    rotation.rotate(both, pause=lambda _: None)
    assert rewritten
    details = find_details(job_id, database=both)
    assert details is not None
    assert details.contract == {}
    both.close()


def damage(database: Database, job_id: UUID, change: Callable[[str], str]) -> None:
    """Change the stored text of a payload behind everybody's back."""
    key = job_id.hex if database.dialect == "sqlite" else job_id
    with database.write() as session:
        before = session.execute(
            text("SELECT CAST(contract AS TEXT) FROM payloads WHERE job_id = :job"), {"job": key}
        ).scalar_one()
        cast = ":new" if database.dialect == "sqlite" else "CAST(:new AS JSONB)"
        session.execute(
            text(f"UPDATE payloads SET contract = {cast} WHERE job_id = :job"),
            {"job": key, "new": change(before)},
        )


CHANGES: dict[str, Callable[[str], str]] = {
    "cut short": lambda stored: stored[:-2] + '"',
    "one letter": lambda stored: stored[:40] + ("A" if stored[40] != "A" else "B") + stored[41:],
    "emptied": lambda stored: '"tm1$k1$AAAA"',
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_text_that_was_changed_is_an_error_of_its_own_kind(sealed: Database, change: str) -> None:
    job_id = finished(sealed)
    damage(sealed, job_id, CHANGES[change])
    with pytest.raises(Unopenable, match="was not sealed for that place by the key k1") as raised:
        find_details(job_id, database=sealed)
    assert CANARY not in str(raised.value)


def test_one_text_that_does_not_open_leaves_the_rest_to_the_new_key(
    sealed: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "ROWS", 2)
    jobs = [finished(sealed) for _ in range(5)]
    for job_id in jobs[1:4]:  # a whole page of them, too
        damage(sealed, job_id, CHANGES["cut short"])
    both = Database(sealed.url, ring("k2", "k1"))
    done = rotation.rotate(both, pause=lambda _: None)
    assert (done["payloads.contract"], done["results.output"]) == (2, 5)
    assert values_by_key(both, both.keys)["payloads.contract"] == {"k2": 2, "k1": 3, "": 0, "?": 0}
    both.close()


def test_a_rotation_that_is_broken_off_leaves_every_text_readable(
    sealed: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "ROWS", 2)
    jobs = [finished(sealed) for _ in range(5)]
    both = Database(sealed.url, ring("k2", "k1"))

    def die(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rotation.rotate(both, pause=die)
    num_sealed = sum(counts["k2"] for counts in values_by_key(both, both.keys).values())
    assert num_sealed == rotation.ROWS, "one page"
    for job_id in jobs:
        found = find_details(job_id, database=both)
        assert found is not None
        assert found.contract == {"text": f"{CANARY} was sent"}
    rotation.rotate(both, pause=lambda _: None)
    assert not any(counts["k1"] for counts in values_by_key(both, both.keys).values())
    both.close()


def test_jobs_run_while_keys_are_rotated(sealed: Database) -> None:
    old = [finished(sealed) for _ in range(4)]
    both = Database(sealed.url, ring("k2", "k1"))
    new: list[UUID] = []
    thread = threading.Thread(target=lambda: new.extend(finished(both) for _ in range(4)))
    thread.start()
    rotation.rotate(both, pause=lambda _: None)
    thread.join()
    alone = Database(sealed.url, ring("k2"))
    assert sorted(found.id for found in find_results(database=alone)) == sorted(old + new)
    alone.close()
    both.close()


def test_without_keys_nothing_is_rotated(database: Database) -> None:
    with pytest.raises(EncryptionError, match="there are no keys"):
        rotation.rotate(database)


def test_a_fingerprint_says_nothing_without_the_key() -> None:
    assert ring("k1").fingerprint(b"text") == ring("k1", "k2").fingerprint(b"text")
    assert ring("k1").fingerprint(b"text") != ring("k2", "k1").fingerprint(b"text")
    assert len(ring("k1").fingerprint(b"text")) == 32
