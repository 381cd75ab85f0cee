"""FirstSeen: detects duplicate ids in batches of any length."""

import sqlite3

from tasks.errors import DuplicateId

CACHE_KIB = 16 * 1024


class FirstSeen:
    """The ids of a batch, in a private temporary database.

    It is exact, and a million ids take no more memory than a few thousand. The database is deleted
    with the object.
    """

    def __init__(self) -> None:
        # With an empty name SQLite makes a temporary file once its cache is full.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in (
            f"PRAGMA cache_size = -{CACHE_KIB}",
            "PRAGMA journal_mode = OFF",
            "CREATE TABLE seen (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID",
            "BEGIN",
        ):
            self._database.execute(statement)

    def require_new(self, field: str, value: str, place: str, *scope: str) -> None:
        """Store an id; raises DuplicateId if it exists in this scope."""
        key = "\0".join((field, *scope, value))  # no id holds a NUL
        insert = "INSERT OR IGNORE INTO seen VALUES (?, ?)"
        if self._database.execute(insert, (key, place)).rowcount:
            return
        find = "SELECT place FROM seen WHERE id = ?"
        [(first_place,)] = self._database.execute(find, (key,))
        raise DuplicateId(field, place, first_place)

    def close(self) -> None:
        self._database.close()

    def __del__(self) -> None:
        self._database.close()
