"""Erasure and export of everything stored for a tenant, or for a person that metadata identify.

Erasure deletes every text and every name that a producer gave. It keeps the data that counts need:
state, task, model, tenant, tokens, times. An unfinished job is cancelled in the transaction that
deletes its text, so that its attempt is fenced off: nothing can write to a job that is not running.
"""

import base64
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import inspect, select
from sqlalchemy.orm import Session

from db import audit
from db.encryption.sealed import passing_over_unopenable
from db.models import Base, QuarantinedMessage
from db.queries import erasure
from db.queries.quarantine import delete_quarantined
from db.reading.storable import can_be_kept
from db.session import Database

ROWS = 250  # rows per transaction
LOCKED_SECONDS = 0.05  # between two tries, while other processes lock all rows that are left
MESSAGES = 100
CHECKPOINT_SECONDS = 30.0  # the wait for readers of SQLite's write-ahead log


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """The owner of jobs: a tenant, or metadata pairs that all must match, or both."""

    tenant: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tenant is None and not self.metadata:
            raise ValueError("name a tenant or metadata: nobody has everything")
        texts = (self.tenant or "", *self.metadata, *self.metadata.values())
        if not all(map(can_be_kept, texts)):
            raise ValueError("there is a character that no database keeps")

    def audited(self) -> dict[str, Any]:
        """The person as the audit names them: metadata keys without values, which may be names."""
        keys = {"metadata_keys": sorted(self.metadata)} if self.metadata else {}
        return keys if self.tenant is None else {"tenant": self.tenant, **keys}

    def sent(self, fields: Mapping[str, Any]) -> bool:
        """Whether the fields of a message belong to the person."""
        tenant = fields.get("tenant")
        tenant = "default" if tenant is None else _as_text(tenant)
        if self.tenant is not None and tenant != self.tenant:
            return False
        pairs = fields.get("metadata")
        pairs = pairs if isinstance(pairs, Mapping) else {}
        return all(_as_text(pairs.get(key)) == value for key, value in self.metadata.items())


def _as_text(value: Any) -> str:
    """A value of a message as text; it may be a number where a contract has a text."""
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(slots=True, kw_only=True)
class Erased:
    """The numbers of affected rows; an unreadable message may belong to anyone."""

    jobs: int = 0
    cancelled: int = 0  # the jobs among them that waited or ran
    messages: int = 0
    batches: int = 0
    unreadable_messages: int = 0


def count(database: Database, person: Person) -> Erased:
    """The number of rows that erasing would change."""
    with database.read() as session:
        jobs, unfinished = session.execute(erasure.num_jobs(database.dialect, person)).one()
        batches = session.scalar(erasure.num_batches(database.dialect, person)) or 0
    counts = Erased(jobs=jobs, cancelled=unfinished, batches=batches)
    for ids, num_unreadable in _messages(database, person):
        counts.messages += len(ids)
        counts.unreadable_messages += num_unreadable
    return counts


def erase(database: Database, person: Person) -> Erased:
    """Erase everything, including jobs submitted meanwhile. Each part has an entry in the audit."""
    erased = Erased()
    if database.keys is None:
        # Messages must be opened: if a key is missing, this fails before anything is erased.
        for _ in _messages(database, person):
            pass
    while True:
        with database.read() as session:
            job_ids = session.scalars(erasure.page(database.dialect, person, ROWS)).all()
        if not job_ids:
            break
        with database.write() as session:
            job_ids, num_cancelled, num_messages = erasure.erase_jobs(session, job_ids)
            if job_ids:
                erasure.forget_cached(session, job_ids)
                objects = {**person.audited(), "jobs": [str(each) for each in job_ids]}
                audit.append(session, audit.Act.ERASE, objects)
        if not job_ids:
            time.sleep(LOCKED_SECONDS)
        erased.jobs += len(job_ids)
        erased.cancelled += num_cancelled
        erased.messages += num_messages
    for ids, num_unreadable in _messages(database, person):
        erased.unreadable_messages += num_unreadable
        if ids:
            with database.write() as session:
                session.execute(delete_quarantined(ids))
                objects = {**person.audited(), "messages": [str(each) for each in ids]}
                audit.append(session, audit.Act.ERASE, objects)
            erased.messages += len(ids)
    with database.write() as session:
        batch_ids = session.scalars(erasure.erase_batches(database.dialect, person)).all()
        if batch_ids:
            objects = {**person.audited(), "batches": [str(each) for each in batch_ids]}
            audit.append(session, audit.Act.ERASE, objects)
    erased.batches = len(batch_ids)
    return erased


def _messages(database: Database, person: Person) -> Iterator[tuple[list[UUID], int]]:
    """The quarantined messages of a person, page by page, and the number of unreadable ones."""
    after: UUID | None = None
    while True:
        with passing_over_unopenable(), database.read() as session:
            page = session.scalars(erasure.messages(after, MESSAGES)).all()
        theirs, num_unreadable = [], 0
        for message in page:
            fields = None if message.body is None else message_fields(message.body)
            if fields is None:
                num_unreadable += 1
            elif person.sent(fields):
                theirs.append(message.id)
        yield theirs, num_unreadable
        if len(page) < MESSAGES:
            return
        after = page[-1].id


def message_fields(body: bytes) -> Mapping[str, Any] | None:
    """A job's fields in a message or in its body; None without any, or if some are positional."""
    try:
        message = json.loads(body)
        if isinstance(message, dict):
            if message.keys().isdisjoint(("body", "headers", "properties")):
                return message  # the message is a bare contract
            text = message["body"]
            encoding = (message.get("properties") or {}).get("body_encoding")
            message = json.loads(base64.b64decode(text) if encoding == "base64" else text)
        unnamed, fields = message[0], message[1]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return fields if isinstance(fields, dict) and (fields or not unnamed) else None


def scrub(database: Database) -> bool:
    """Overwrite erased data in SQLite's file and log; False while a reader prevents it.

    Deleting leaves a row's bytes in place until they are reused. On PostgreSQL this does nothing:
    only an operator's VACUUM FULL does it there.
    """
    if database.file is None:
        return True
    connection = database.engine.raw_connection()
    try:
        driver: Any = connection.driver_connection
        # Texts that were deleted earlier, such as segments of documents, are in free pages.
        driver.execute("PRAGMA secure_delete = ON")
        driver.execute("VACUUM")
        return _empty_log(driver)
    finally:
        connection.close()


def _empty_log(driver: sqlite3.Connection) -> bool:
    """Write SQLite's log into its file and truncate it."""
    deadline = time.monotonic() + CHECKPOINT_SECONDS
    while True:
        (is_busy, _, _) = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not is_busy:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def export(database: Database, person: Person) -> Iterator[dict[str, Any]]:
    """Every stored row of a person, JSON-able: batches, jobs, messages, each with its `kind`.

    A text that cannot be decrypted is None, and its job's `unopenable` names its place. The entry
    in the audit is written first.
    """
    with database.write() as session:
        audit.append(session, audit.Act.EXPORT, person.audited())
    with database.read() as session:
        batches = session.scalars(erasure.batches(database.dialect, person)).all()
    for batch in batches:
        yield {"kind": "batch", **_json_of(batch)}
    written: set[str] = set()  # messages that are exported with their job
    after: UUID | None = None
    while True:
        with database.read() as session:
            job_ids = session.scalars(
                erasure.page(database.dialect, person, ROWS, after, with_erased=True)
            ).all()
            jobs = [_whole(session, job_id) for job_id in job_ids]
        written.update(each["id"] for job in jobs for each in job["messages"])
        yield from jobs
        if len(job_ids) < ROWS:
            break
        after = job_ids[-1]
    for ids, _ in _messages(database, person):
        with database.read() as session:
            statement = select(QuarantinedMessage).where(QuarantinedMessage.id.in_(ids))
            messages = session.scalars(statement).all()
        for message in messages:
            if str(message.id) not in written:
                yield {"kind": "message", **_json_of(message)}


def _whole(session: Session, job_id: UUID) -> dict[str, Any]:
    with passing_over_unopenable() as unopenable:
        job, payload, result = session.execute(erasure.whole_job(job_id)).one()
        parts = {
            name: [_json_of(row) for row in session.scalars(erasure.rows_of(model, job_id))]
            for name, model in erasure.PARTS.items()
        }
    return {
        "kind": "job",
        **_json_of(job),
        "payload": None if payload is None else _json_of(payload),
        "result": None if result is None else _json_of(result),
        **parts,
        **({"unopenable": unopenable} if unopenable else {}),
    }


def _json_of(row: Base) -> dict[str, Any]:
    """The columns of a row, by their names in the table."""
    return {
        attribute.columns[0].name: _json_value(getattr(row, attribute.key))
        for attribute in inspect(type(row)).column_attrs
    }


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return value
