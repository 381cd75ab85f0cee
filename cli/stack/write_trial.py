"""Write trial: whether disks have room, and whether the database accepts a write."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from sqlalchemy import insert
from sqlalchemy.exc import SQLAlchemyError
from uuid_utils.compat import uuid7

from cli.failure import sentence_of
from db.errors import DatabaseError
from db.models import Batch
from db.session import Database

MIN_FREE_BYTES = 256 * 2**20
TRIAL_BYTES = 2**20
LOCK_MILLISECONDS = 2000  # a person waits


@dataclass(frozen=True, slots=True)
class Room:
    """The free space on the disk of a folder."""

    folder: Path
    free_bytes: int  # for this user
    total_bytes: int
    has_files_left: bool  # a disk can be full of small ones

    @property
    def is_short(self) -> bool:
        return self.free_bytes < MIN_FREE_BYTES or not self.has_files_left

    @property
    def sentence(self) -> str:
        of = f"{_mib(self.free_bytes)} of {_mib(self.total_bytes)} are free on the disk of"
        if not self.has_files_left:
            return f"no more files can be made on the disk of {self.folder} (no inodes are left)"
        if self.is_short:
            return f"only {of} {self.folder}; make room, or jobs and results cannot be kept"
        return f"{of} {self.folder}"


def room_of(folder: Path) -> Room:
    """The free space for a folder. Raises OSError if the folder cannot be read."""
    usage = os.statvfs(folder)
    return Room(
        folder=folder,
        free_bytes=usage.f_bavail * usage.f_frsize,
        total_bytes=usage.f_blocks * usage.f_frsize,
        has_files_left=usage.f_files == 0 or usage.f_favail > 0,
    )


def rooms_of(folders: Iterable[Path]) -> list[Room]:
    """The free space of each disk among the folders, in order."""
    disks: dict[int, Room] = {}
    for folder in folders:
        try:
            device = folder.stat().st_dev
            if device not in disks:
                disks[device] = room_of(folder)
        except OSError:
            continue  # whatever needs it says that it is not there
    return list(disks.values())


def write_fault(database: Database) -> str | None:
    """The reason that the database accepts no write now; None if it does.

    It writes a mebibyte in a transaction that is rolled back. SQLite keeps uncommitted data in
    memory unless its cache is smaller than that.
    """
    try:
        _write_and_roll_back(database)
    except (DatabaseError, SQLAlchemyError) as error:
        return sentence_of(error)
    return None


def _write_and_roll_back(database: Database) -> None:
    with database.engine.connect() as connection:
        if database.dialect == "sqlite":
            driver = connection.connection.driver_connection
            assert driver is not None
            # Before the transaction begins: what is set within one may not count for it.
            driver.execute(f"PRAGMA busy_timeout = {LOCK_MILLISECONDS}")
            driver.execute("PRAGMA cache_size = 8")
        connection.execute(
            insert(Batch).values(
                id=uuid7(),
                name="trial",
                tenant="tidemill",
                metadata_={"trial": token_hex(TRIAL_BYTES // 2)},
            )
        )
        connection.rollback()
        connection.invalidate()  # its settings were for the trial alone


def _mib(num_bytes: int) -> str:
    return (
        f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.0f} MiB"
    )
