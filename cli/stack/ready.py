"""Ready: what a command needs of the database before it begins."""

from db.schema import require_current
from db.session import Database
from tasks import settings


def require_ready() -> Database:
    """The database, reachable and at our revision; raises DatabaseError or SettingsError."""
    database = settings.database()
    require_current(database)
    return database
