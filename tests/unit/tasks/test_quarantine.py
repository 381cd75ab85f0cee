"""The quarantine stores the newest messages once each, within its limits, and fails their jobs."""

from uuid import uuid4

import pytest
from sqlalchemy import select

from db.models import QuarantinedMessage
from db.queries import quarantine as limits
from db.session import Database
from tasks.quarantine import EndedJob, Reason, SetAside, keep
from tests.samples.jobs import insert_job, job


def message(body: bytes = b"x", job: EndedJob | None = None) -> SetAside:
    return SetAside(
        queue="celery\x00", reason=Reason.NOT_JSON, body=body, num_bytes=len(body), job=job
    )


def bodies(database: Database) -> list[bytes]:
    with database.read() as session:
        return list(session.scalars(select(QuarantinedMessage.body).order_by("id")))


def test_the_oldest_go_by_number_and_by_size(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_MESSAGES", 5)
    monkeypatch.setattr(limits, "MAX_BYTES", 100)
    with database.write() as session:
        keep(session, [message(bytes([number])) for number in range(8)])
    assert bodies(database) == [bytes([number]) for number in range(3, 8)]
    with database.write() as session:
        keep(session, [message(b"\xff" * 98)])
    assert bodies(database) == [b"\x06", b"\x07", b"\xff" * 98]


def test_a_message_moved_twice_is_kept_once_and_its_job_is_not_replaced(
    database: Database,
) -> None:
    known = insert_job(database)
    ended = EndedJob(id=known, task="chat", error_code="not_json", error_message="it is not")
    new = EndedJob(id=uuid4(), task="chat", error_code="not_json", error_message="it\x00 \ud83d")
    twice = [message(job=ended), message(job=new)]
    for _ in range(2):
        with database.write() as session:
            keep(session, twice)
    assert len(bodies(database)) == 2
    assert job(database, known).state == "queued"
    assert job(database, new.id).state == "failed"
    assert job(database, new.id).finished_at is not None
