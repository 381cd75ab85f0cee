"""Lock holders: finds the processes that have an SQLite file open, and the one that writes.

SQLite says `database is locked` but not by whom. Linux knows which processes have a file open, and
mostly which of them hold a lock on it.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
SUFFIXES = ("", "-wal", "-shm")


def is_locked(error: BaseException | None) -> bool:
    """Whether SQLite gave up waiting for a lock."""
    return isinstance(error, sqlite3.OperationalError) and (
        getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    )


def locked_sentence(path: str) -> str:
    """A sentence that names the processes holding the lock, and what to do."""
    begin = f"the database {path} is locked"
    if not (PROC / "self" / "fd").is_dir():
        return f"{begin} by another process; `lsof '{path}'` shows which have it open: end that one"
    files = _identities(path)
    others = {pid: name for pid, name in _open_in(files) if pid != os.getpid()}
    writers = {pid: name for pid, name in others.items() if pid in _lock_pids(files)}
    if writers:
        return f"{begin} by {_named(writers)}; wait until it has written, or end it"
    if others:
        return f"{begin}; {_named(others)} has it open: wait until it has written, or end it"
    return (
        f"{begin}, and no process that this user may look into has it open; "
        f"`sudo fuser -v '{path}'` shows those of others"
    )


def _identities(path: str) -> set[tuple[int, int]]:
    identities = set()
    for suffix in SUFFIXES:
        with suppress(OSError):
            status = Path(path + suffix).stat()
            identities.add((status.st_dev, status.st_ino))
    return identities


def _open_in(files: set[tuple[int, int]]) -> Iterator[tuple[int, str]]:
    """The processes that have one of the files open, with the names of their programs.

    Command lines are left out, since they may contain users' texts.
    """
    for process in PROC.iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):  # the process has ended, or is another user's
            if any(_identity(entry) in files for entry in (process / "fd").iterdir()):
                yield int(process.name), (process / "comm").read_text().strip()


def _identity(entry: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        status = entry.stat()
        return status.st_dev, status.st_ino
    return None


def _lock_pids(files: set[tuple[int, int]]) -> set[int]:
    """The processes with a write lock on one of the files; empty if the system does not tell."""
    inodes = {str(inode) for _, inode in files}
    pids = set()
    with suppress(OSError):
        for line in (PROC / "locks").read_text().splitlines():
            # a line: `1: POSIX  ADVISORY  WRITE 4242 fe:01:917 120 120`
            words = line.replace("->", "").split()
            if len(words) >= 6 and words[3] == "WRITE" and words[5].split(":")[-1] in inodes:
                pids.add(int(words[4]))
    return pids


def _named(processes: dict[int, str]) -> str:
    words = [f"{pid} ({name})" for pid, name in sorted(processes.items())]
    return f"process{'es' if len(words) > 1 else ''} {', '.join(words)}"
