"""Why a database cannot be used, each with a sentence that says what to do.

DatabaseError
├── DatabaseUrlInvalid    its URL cannot be read
├── DatabaseLocked        another process keeps SQLite's file to itself
└── SchemaMismatch        it is at another revision than this code (db.schema)
"""


class DatabaseError(Exception):
    """The database cannot be used; the message says what to do."""


class DatabaseUrlInvalid(DatabaseError):
    pass


class DatabaseLocked(DatabaseError):
    pass
