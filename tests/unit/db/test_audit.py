"""The audit: every act is in the chain, and what was changed in it is found."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text, update

from db import audit, schema
from db.audit import Act, Head
from db.errors import DatabaseError
from db.models import AuditEntry, AuditHead, Base
from db.queries.inserts import table
from db.session import Database
from db.upkeep.pruning import num_prunable, prune
from db.upkeep.retention import Retention

DAY = 86_400.0


def append(database: Database, num: int = 1, act: Act = Act.CANCEL) -> None:
    for number in range(num):
        with database.write() as session:
            audit.append(session, act, {"num_jobs": number, "jobs": ["é"]})


def change(database: Database, statement: Any) -> None:
    with database.write() as session:
        session.execute(statement.execution_options(synchronize_session=False))


def faults(database: Database, known_hash: str | None = None) -> tuple[str, ...]:
    return audit.verify(database, known_hash).faults


def test_an_act_is_kept_with_who_and_when(database: Database) -> None:
    with audit.acting_as("celery gen7@host"), database.write() as session:
        audit.append(session, Act.SUBMIT, {"batch": "b"})
    append(database)

    first, second = audit.entries(database)

    assert (first.actor, first.act, first.objects) == ("celery gen7@host", "submit", {"batch": "b"})
    assert second.actor.startswith("user ")
    assert abs(datetime.now(UTC) - first.at) < timedelta(hours=1)
    assert (first.sequence, first.previous_hash) == (1, audit.GENESIS)
    assert second.previous_hash == first.hash
    assert audit.head(database) == Head(2, second.hash)
    assert audit.verify(database).num_entries == 2
    assert faults(database) == ()
    assert faults(database, first.hash) == ()


def test_an_actor_s_name_is_one_that_a_database_takes(database: Database) -> None:
    with audit.acting_as("celery \x00\ud800" + "x" * 300), database.write() as session:
        audit.append(session, Act.SUBMIT, {})
    assert faults(database) == ()


def test_an_act_that_is_rolled_back_leaves_no_entry(database: Database) -> None:
    append(database)
    with database.write() as session:
        audit.append(session, Act.ERASE, {})
        session.rollback()
    append(database)

    assert [entry.act for entry in audit.entries(database)] == ["cancel", "cancel"]
    assert faults(database) == ()


def test_an_empty_chain_is_sound(database: Database) -> None:
    assert audit.verify(database) == audit.Verification(0, 1, Head(0, audit.GENESIS), ())


@pytest.mark.parametrize(
    "values",
    [
        {"act": "submit"},
        {"actor": "somebody else"},
        {"objects": {"num_jobs": 9}},
        {"at": datetime(2020, 1, 31, tzinfo=UTC)},
        {"hash": "0" * 64},
        {"previous_hash": "1" * 64},
    ],
)
@pytest.mark.parametrize("sequence", [1, 3, 5])
def test_an_entry_that_was_changed_is_found(
    database: Database, values: dict[str, Any], sequence: int
) -> None:
    append(database, 5)
    change(database, update(AuditEntry).where(AuditEntry.sequence == sequence).values(**values))
    assert any(f"entry {sequence} was changed" in fault for fault in faults(database))


@pytest.mark.parametrize(
    ("gone", "fault"),
    [
        ([1], "entry 1 is missing"),
        ([1, 2], "entries 1 to 2 are missing"),
        ([3], "entry 3 is missing"),
        ([2, 3, 4], "entries 2 to 4 are missing"),
        ([5], "entry 5 is missing"),
        ([1, 2, 3, 4, 5], "entries 1 to 5 are missing"),
    ],
)
def test_an_entry_that_was_deleted_is_found(
    database: Database, gone: list[int], fault: str
) -> None:
    append(database, 5)
    change(database, delete(AuditEntry).where(AuditEntry.sequence.in_(gone)))
    assert fault in faults(database)


def test_entries_that_were_exchanged_or_added_are_found(database: Database) -> None:
    append(database, 4)
    second, third = list(audit.entries(database))[1:3]
    for sequence, entry in ((2, third), (3, second)):
        others = {name: getattr(entry, name) for name in ("objects", "hash", "previous_hash")}
        change(database, update(AuditEntry).where(AuditEntry.sequence == sequence).values(**others))
    assert "entry 2 does not follow the one before it" in faults(database)


@pytest.mark.parametrize("sequence", [0, -7])
def test_an_entry_before_the_first_is_found(database: Database, sequence: int) -> None:
    append(database, 2)
    (first, _) = audit.entries(database)
    row = {each.name: getattr(first, each.name) for each in table(AuditEntry).c}
    change(database, insert(table(AuditEntry)).values({**row, "sequence": sequence}))
    assert faults(database) == (f"entry {sequence} was put in: the first has the number 1",)


UNREADABLE = {
    "objects": "'{broken'",
    "at": "'yesterday'",
    "actor": "x'ff'",
}


@pytest.mark.parametrize("column", UNREADABLE)
def test_an_unreadable_entry_hides_no_other(tmp_path: Path, column: str) -> None:
    """SQLite takes anything into any column; PostgreSQL refuses what these are not."""
    database = Database(f"sqlite:///{tmp_path}/a.db")
    Base.metadata.create_all(database.engine)
    append(database, 9)
    for sequence in (3, 8):
        change(database, text(f"UPDATE audit SET {column} = {UNREADABLE[column]}"
                              f" WHERE sequence = {sequence}"))  # fmt: skip
    change(database, delete(AuditEntry).where(AuditEntry.sequence == 5))
    assert faults(database) == ("entry 3 was changed", "entry 5 is missing", "entry 8 was changed")
    if column != "actor":
        with pytest.raises(DatabaseError, match="`tidemill audit verify` says which"):
            list(audit.entries(database))
    database.close()


@pytest.mark.parametrize(
    "objects", [{"audit_through": "x"}, {"audit_through": 1}, ["audit_through"]]
)
def test_an_entry_that_was_made_one_of_a_prune_is_found(database: Database, objects: Any) -> None:
    append(database, 3)
    forged = update(AuditEntry).where(AuditEntry.sequence == 2)
    change(database, forged.values(act=Act.PRUNE, objects=objects))
    change(database, delete(AuditEntry).where(AuditEntry.sequence == 1))
    assert faults(database) == ("entry 1 is missing", "entry 2 was changed")


def test_an_entry_behind_the_end_is_found(database: Database) -> None:
    append(database, 2)
    forged = {"sequence": 3, "at": datetime.now(UTC), "actor": "x", "act": "erase", "objects": {}}
    hashes = {"previous_hash": audit.head(database).hash, "hash": "0" * 64}
    change(database, insert(table(AuditEntry)).values(**forged, **hashes))
    assert "the chain does not end with the entry that was appended last" in faults(database)


def test_a_cut_tail_whose_end_was_set_back_too_shows_by_a_logged_hash(database: Database) -> None:
    append(database, 3)
    logged = audit.head(database)
    second = list(audit.entries(database))[1]
    change(database, delete(AuditEntry).where(AuditEntry.sequence == 3))
    before = {"sequence": 2, "hash": second.hash, "previous_hash": second.previous_hash}
    change(database, update(AuditHead).values(**before))

    assert faults(database) == ()
    assert faults(database, second.hash) == ()
    (fault,) = faults(database, logged.hash)
    assert "the chain was cut, or written anew" in fault


def test_appends_of_many_at_once_make_one_chain(database: Database) -> None:
    threads = [threading.Thread(target=append, args=(database, 10)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert audit.verify(database).num_entries == 40
    assert faults(database) == ()


def test_a_pruned_audit_chain_still_verifies(database: Database) -> None:
    append(database, 6)
    old = datetime.now(UTC) - timedelta(days=10)
    first = list(audit.entries(database))
    change(database, delete(AuditEntry))
    change(database, delete(AuditHead))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "datetime", _At(old))
        append(database, 4)
    append(database, 2)
    assert len(first) == 6
    retention = Retention(for_all={"audit": 5 * DAY})

    assert num_prunable(database, retention)["audit entries"] == 4
    assert prune(database, retention, pause=lambda _: None)["audit entries"] == 4

    verified = audit.verify(database)
    assert (verified.first, verified.faults) == (5, ())
    acts = [(entry.sequence, entry.act) for entry in audit.entries(database)]
    assert acts == [(5, "cancel"), (6, "cancel"), (7, "prune"), (8, "prune")]
    change(database, delete(AuditEntry).where(AuditEntry.sequence == 5))
    assert faults(database) == ("entry 5 is missing",)


def append_at(database: Database, num: int, days: float) -> None:
    """By a clock that is so many days ahead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "datetime", _At(datetime.now(UTC) + timedelta(days=days)))
        append(database, num)


OLD = Retention(for_all={"audit": 5 * DAY})


def test_an_entry_of_the_future_keeps_no_others_for_ever(database: Database) -> None:
    for days in (-10, 5000, -10, 0):
        append_at(database, 2, days)
    assert prune(database, OLD, pause=lambda _: None)["audit entries"] == 6
    assert audit.verify(database).first == 7
    assert faults(database) == ()


def test_a_clock_that_goes_back_takes_no_younger_entry_with_it(database: Database) -> None:
    for days in (-10, 0, -20):
        append_at(database, 2, days)
    assert prune(database, OLD, pause=lambda _: None)["audit entries"] == 2
    assert faults(database) == ()


def test_a_cut_during_a_verification_is_no_fault(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said that entries were missing, which a cron line takes for an attack."""
    append_at(database, 8, -10)
    append(database)
    monkeypatch.setattr(audit, "PAGE", 3)

    class Cut(Database):
        num_reads = 0

        def read(self) -> Any:
            self.num_reads += 1
            if self.num_reads == 2:
                prune(database, OLD, pause=lambda _: None)
            return super().read()

    cut = Cut(database.url)
    verified = audit.verify(cut)
    cut.close()
    assert (verified.first, verified.faults) == (9, ())


def test_a_pass_that_is_behind_another_leaves_a_sound_chain(database: Database) -> None:
    append_at(database, 4, -10)
    append(database)
    second = list(audit.entries(database))[1]
    prune(database, OLD, pause=lambda _: None)
    with database.write() as session:
        behind = {"audit_through": second.sequence, "audit_hash": second.hash}
        audit.append(session, Act.PRUNE, behind)
    assert faults(database) == ()


class _At:
    def __init__(self, at: datetime) -> None:
        self._at = at

    def now(self, _: object) -> datetime:
        return self._at


def test_the_last_entry_is_never_pruned(database: Database) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "datetime", _At(datetime.now(UTC) - timedelta(days=10)))
        append(database, 3)
    assert num_prunable(database, Retention(for_all={"audit": DAY}))["audit entries"] == 0


def test_a_page_of_entries_is_read_whole(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "PAGE", 3)
    append(database, 8)
    append(database, 1, Act.ERASE)
    newest = audit.entries(database, newest_first=True, limit=4)
    assert [entry.sequence for entry in newest] == [9, 8, 7, 6]
    assert audit.verify(database).num_entries == 9
    (erased,) = audit.entries(database, act="erase")
    assert erased.sequence == 9
    assert list(audit.entries(database, actor="nobody such")) == []


def test_a_migration_is_an_act(empty_database: Database) -> None:
    schema.migrate(empty_database)
    schema.migrate(empty_database)
    (entry,) = audit.entries(empty_database)
    assert (entry.act, entry.objects) == ("migrate", {"from": None, "to": schema.head()})
    with empty_database.read() as session:
        assert session.scalars(select(AuditHead.name)).all() == ["audit"]
    assert "audit" in Base.metadata.tables
