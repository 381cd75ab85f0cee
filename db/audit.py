"""Audit: a hash chain of entries, in which every change shows: who did what to which objects.

An entry is appended in the transaction of its act, so that neither exists without the other. Its
hash covers the previous hash and its own content. The row of `audit_heads` has the latest hash, and
an append locks that row until its commit. So an append comes last in its transaction, and delays
others for no longer than a commit takes.

Anyone who can write to the database can rewrite the whole chain, but not a hash that was logged:
`verify` takes one and looks for it.
"""

import hashlib
import json
import os
import pwd
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.errors import DatabaseError
from db.models import AuditEntry, AuditHead
from db.queries import audit
from db.session import Database

GENESIS = "0" * 64  # `previous` of the first entry
PAGE = 1000
MAX_ACTOR_CHARACTERS = 256


class Act(StrEnum):
    SUBMIT = "submit"
    CANCEL = "cancel"
    RETRY = "retry"
    PRUNE = "prune"
    EXPORT = "export"
    ERASE = "erase"
    BACKUP = "backup"
    REQUEUE = "requeue"  # a quarantined message was put back in the queue
    FORGET = "forget"  # a quarantined message was deleted
    MIGRATE = "migrate"
    ROTATE_KEYS = "rotate_keys"


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry of the chain; the sequence of an empty one is 0."""

    sequence: int
    hash: str


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of verifying the chain; `faults` is empty if no entry was changed."""

    num_entries: int
    first: int  # the sequence of the oldest entry that is kept
    head: Head
    faults: tuple[str, ...]


_actor: ContextVar[str | None] = ContextVar("actor", default=None)


@contextmanager
def acting_as(actor: str) -> Iterator[None]:
    """Record acts within this context under this actor: `celery ORIGIN`, `worker NAME`."""
    clean = actor.replace("\x00", "").encode(errors="replace").decode()
    token = _actor.set(clean[:MAX_ACTOR_CHARACTERS])
    try:
        yield
    finally:
        _actor.reset(token)


def present_actor() -> str:
    """The actor that `acting_as` set, or else the user of this process."""
    return _actor.get() or _process_user(os.getuid())


@cache
def _process_user(uid: int) -> str:
    # The user of the process, not $USER, which any user may set.
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return f"user {name}@{socket.gethostname()}"[:MAX_ACTOR_CHARACTERS]


def append(session: Session, act: Act, objects: Mapping[str, Any]) -> None:
    """Append an act of the present actor, as the last statement of its transaction.

    objects: ids, names of ours and numbers, JSON-able; never a user's text
    """
    at, actor = datetime.now(UTC), present_actor()
    content = _content(at, actor, act, objects)
    row = {"at": at, "actor": actor, "act": act.value, "objects": dict(objects)}
    if not audit.append_entry(session.connection(), content, row):
        session.execute(audit.insert_head(session, GENESIS))
        assert audit.append_entry(session.connection(), content, row)


def _content(at: datetime, actor: str, act: str, objects: Mapping[str, Any]) -> str:
    parts = {"at": at.isoformat(), "actor": actor, "act": str(act), "objects": objects}
    return json.dumps(parts, sort_keys=True, separators=(",", ":"))


def head(database: Database) -> Head:
    """The last entry of the chain, to be logged where it cannot be changed."""
    with database.read() as session:
        row = session.scalars(select(AuditHead)).first()
    return Head(0, GENESIS) if row is None else Head(row.sequence, row.hash)


def entries(
    database: Database,
    *,
    act: str | None = None,
    actor: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    after: int | None = None,
    newest_first: bool = False,
    limit: int | None = None,
) -> Iterator[AuditEntry]:
    """Entries in order, page by page.

    actor: a part of the name
    after: the sequence of an entry; only later ones are returned
    """
    statement = audit.entries(act, actor, since, until)
    num_left = limit
    while num_left is None or num_left > 0:
        num = PAGE if num_left is None else min(PAGE, num_left)
        try:
            with database.read() as session:
                page = session.scalars(audit.page(statement, after, num, newest_first)).all()
        except (ValueError, TypeError) as error:
            raise DatabaseError(
                "an entry of the audit was changed into what nobody can read; "
                "`tidemill audit verify` says which"
            ) from error
        yield from page
        if len(page) < num:
            return
        after = page[-1].sequence
        num_left = None if num_left is None else num_left - num


def verify(database: Database, known_hash: str | None = None) -> Verification:
    """Recompute the chain from the oldest stored entry.

    known_hash: a logged hash, which the chain must contain
    """
    while True:
        verified = _verify_once(database, known_hash)
        # If a pruning pass cuts the beginning meanwhile, the next entry does not fit the ones read
        # before it.
        if not verified.faults or _first(database) in (None, verified.first):
            return verified


def _verify_once(database: Database, known_hash: str | None) -> Verification:
    chain = _Chain(known_hash)
    while True:
        num_before = chain.num
        for entry in _as_they_are(database, chain.last.sequence if chain.num else None):
            chain.add(entry)
        end = head(database)  # read after the entries, since entries may be added meanwhile
        if end.sequence <= chain.last.sequence or chain.num == num_before:
            return chain.verified(end)


def _first(database: Database) -> int | None:
    """The sequence of the oldest stored entry."""
    with database.read() as session:
        place = session.execute(audit.places(0, 1)).first()
    return None if place is None else place.sequence


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """The place in the chain of an entry that was changed and cannot be parsed."""

    sequence: int
    previous_hash: str
    hash: str


def _as_they_are(database: Database, after: int | None) -> Iterator[AuditEntry | _Unreadable]:
    """Entries in order, even where somebody has changed them."""
    while True:
        with database.read() as session:
            places = session.execute(audit.places(after, PAGE)).all()
            yield from _read_together(session, [_Unreadable(*each) for each in places])
        if len(places) < PAGE:
            return
        after = places[-1].sequence


def _read_together(
    session: Session, places: Sequence[_Unreadable]
) -> Sequence[AuditEntry | _Unreadable]:
    """Read the entries of these places, in halves if one cannot be parsed."""
    if not places:
        return places
    try:
        return session.scalars(audit.between(places[0].sequence, places[-1].sequence)).all()
    except (ValueError, TypeError):
        if len(places) == 1:
            return places
    half = len(places) // 2
    return [*_read_together(session, places[:half]), *_read_together(session, places[half:])]


def _is_unchanged(entry: AuditEntry | _Unreadable) -> bool:
    """Whether an entry's hash matches its content."""
    if isinstance(entry, _Unreadable):
        return False
    try:
        content = _content(entry.at, entry.actor, entry.act, entry.objects)
        chained = (entry.previous_hash + content).encode()
    except (TypeError, ValueError, AttributeError):  # a column of another type
        return False
    return hashlib.sha256(chained).hexdigest() == entry.hash


class _Chain:
    """The entries verified so far, and their faults."""

    def __init__(self, known_hash: str | None) -> None:
        self._known_hash = known_hash
        self._is_known = known_hash in (None, GENESIS)
        self._begins_after = self._pruned_through = self.last = Head(0, GENESIS)
        self._faults: list[str] = []
        self.num = 0

    def add(self, entry: AuditEntry | _Unreadable) -> None:
        if entry.sequence < 1:
            self._faults.append(f"entry {entry.sequence} was put in: the first has the number 1")
            return
        if self.num == 0:
            self._begins_after = Head(entry.sequence - 1, entry.previous_hash)
        elif entry.sequence != self.last.sequence + 1:
            self._faults.append(_missing(self.last.sequence + 1, entry.sequence - 1))
        elif entry.previous_hash != self.last.hash:
            self._faults.append(f"entry {entry.sequence} does not follow the one before it")
        if not _is_unchanged(entry):
            self._faults.append(f"entry {entry.sequence} was changed")
        elif (
            isinstance(entry, AuditEntry)
            and entry.act == Act.PRUNE
            and "audit_through" in entry.objects
        ):
            through = Head(entry.objects["audit_through"], entry.objects["audit_hash"])
            # If two passes run at once, the slower one may record its cut last.
            if through.sequence > self._pruned_through.sequence:
                self._pruned_through = through
        self._is_known |= entry.hash == self._known_hash
        self.num += 1
        self.last = Head(entry.sequence, entry.hash)

    def verified(self, end: Head) -> Verification:
        faults = list(self._faults)
        if self._begins_after != self._pruned_through:
            gap = self._pruned_through.sequence + 1, self._begins_after.sequence
            faults.insert(0, _missing(*gap))
        if self.last.sequence < end.sequence:
            faults.append(_missing(self.last.sequence + 1, end.sequence))
        elif self.last != end:
            faults.append("the chain does not end with the entry that was appended last")
        if not self._is_known:
            faults.append(
                f"no entry has the hash {self._known_hash}: the chain was cut, or written anew"
            )
        return Verification(self.num, self._begins_after.sequence + 1, end, tuple(faults))


def _missing(first: int, last: int) -> str:
    if first > last:
        return f"entry {first} does not follow what was pruned before it"
    if first == last:
        return f"entry {first} is missing"
    return f"entries {first} to {last} are missing"
