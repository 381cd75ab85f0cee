"""Backups of an SQLite database, made and checked while it is in use."""

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from db import audit
from db.errors import DatabaseError
from db.session import Database

PAGES = 4096  # pages per step; other processes may write between two steps


@dataclass(frozen=True, slots=True)
class Backup:
    num_bytes: int
    num_jobs: int


class NoBackup(DatabaseError):
    """This database cannot be backed up, or not to this file; the message says what to do."""


def back_up(database: Database, to: Path) -> Backup:
    """Copy the database as it is at one moment; the file appears when it is complete and checked.

    Raises NoBackup if the file exists or the database is PostgreSQL.
    """
    if database.file is None:
        raise NoBackup(
            "this is a PostgreSQL database: back it up with pg_dump or your server's own means; "
            "docs/operations.md says what it needs"
        )
    if to.exists():
        raise NoBackup(f"{to} is there already; a backup replaces nothing")
    if not to.absolute().parent.is_dir():
        raise NoBackup(f"there is no folder {to.absolute().parent}; make it first")
    part = to.with_name(to.name + ".part")
    _remove(part)
    # Only its owner may read the file, from its first byte on: it holds users' texts.
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        with database.write() as session:
            audit.append(session, audit.Act.BACKUP, {})
        with closing(sqlite3.connect(part)) as copy:
            with closing(sqlite3.connect(f"file:{database.file}?mode=ro", uri=True)) as source:
                # One read transaction fixes the snapshot; without it every write would restart the
                # copy.
                source.execute("BEGIN")
                source.execute("SELECT 1 FROM jobs LIMIT 1")
                source.backup(copy, pages=PAGES)
            # A single file without a write-ahead log, which would be left behind when the file is
            # moved.
            copy.execute("PRAGMA journal_mode = DELETE")
            num_jobs = _checked(copy)
        _to_disk(part)
        os.replace(part, to)
        _to_disk(to.absolute().parent)
    except sqlite3.Error as error:
        # The disk is full, or the database is damaged; neither message quotes a row.
        raise NoBackup(f"the copy could not be made: {error}") from error
    finally:
        _remove(part)
    return Backup(to.stat().st_size, num_jobs)


def _remove(part: Path) -> None:
    """Remove an incomplete copy and SQLite's files beside it, which contain texts too."""
    for beside in ("", "-journal", "-wal", "-shm"):
        part.with_name(part.name + beside).unlink(missing_ok=True)


def _checked(copy: sqlite3.Connection) -> int:
    """Count the jobs in a copy; raises NoBackup if it is damaged."""
    (verdict,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
    broken = copy.execute("PRAGMA foreign_key_check").fetchone()
    if verdict != "ok" or broken is not None:
        raise NoBackup(f"the copy is not sound ({verdict}); check the database itself")
    (num_jobs,) = copy.execute("SELECT count(*) FROM jobs").fetchone()
    return int(num_jobs)


def _to_disk(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
