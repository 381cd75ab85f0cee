"""Turns any error into a sentence with a remedy."""

from db.connection.lock_holders import is_locked
from db.errors import DatabaseError
from tasks.errors import TidemillError


def sentence_of(error: Exception) -> str:
    """The sentence for an error that ends a command."""
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    if isinstance(error, TidemillError | DatabaseError):
        return str(error)
    if isinstance(error, DBAPIError):
        if is_locked(error.orig):
            return str(error.orig)  # the session has put into it who holds the lock
        reason = str(error.orig).strip().splitlines()
        return f"the database failed: {reason[0] if reason else type(error.orig).__name__}"
    if isinstance(error, SQLAlchemyError):
        return f"the database failed: {str(error).splitlines()[0]}"
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}"
    return (
        f"this is a fault in Tidemill: {type(error).__name__}; "
        "TIDEMILL_DEBUG=1 shows where, for a report"
    )
