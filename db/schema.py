"""The schema's revision: upgrades a database to ours, and refuses any other."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, inspect
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from db import audit
from db.connection.lock_holders import is_locked
from db.errors import DatabaseError, DatabaseLocked
from db.models import AuditHead
from db.session import Database

# Only code that migrates imports Alembic: the import is a fifth of the start of a worker or a
# command.
if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import Script, ScriptDirectory

MIGRATIONS = Path(__file__).parent / "migrations"


class SchemaMismatch(DatabaseError):
    """The database is at another revision than this code; the message names both and the remedy."""


def config(connection: Connection | None = None) -> "Config":
    """Alembic's configuration for our migrations on `connection`."""
    from alembic.config import Config

    alembic = Config()
    # ConfigParser reads % as interpolation.
    alembic.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    alembic.attributes["connection"] = connection
    return alembic


def revisions() -> list[str]:
    """Every revision that this code knows, oldest first.

    Migrations form one line, and the name of a migration's file begins with its revision.
    """
    return sorted(path.name.partition("_")[0] for path in MIGRATIONS.glob("versions/[0-9]*_*.py"))


def head() -> str:
    """The revision that this code needs."""
    return revisions()[-1]


def revision(database: Database) -> str | None:
    """The database's revision; None if it has none of our tables.

    Raises DatabaseError if the database cannot be reached.
    """
    try:
        # Reading takes no lock, even while another process writes.
        engine = database.engine.execution_options(tidemill_read_only=True)
        with engine.connect() as connection:
            return _revision(connection)
    except OperationalError as error:
        if is_locked(error.orig):
            raise DatabaseLocked(str(error.orig)) from error
        reason = _first_line(error)
        if database.file is not None:
            remedy = "it must be a file that this user may read and write, in a folder as well"
        elif "certificate verify failed" in reason:  # libpq says no more than this
            remedy = (
                "give the file of its authority as sslrootcert in TIDEMILL_DATABASE_URL; or its "
                "certificate is for another name, or has expired"
            )
        else:
            remedy = "start it, or say with TIDEMILL_DATABASE_URL where it is"
        raise DatabaseError(
            f"the database {database.shown_url} cannot be reached: {reason}; {remedy}"
        ) from error


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.exec_driver_sql(
        "SELECT version_num FROM alembic_version"
    ).scalar()
    return version


def migrate(database: Database, to: str = "head") -> tuple[str | None, str | None]:
    """Bring the database to a revision; returns the revisions before and after."""
    from alembic import command
    from alembic.script import ScriptDirectory

    before = revision(database)
    scripts = ScriptDirectory.from_config(config())
    known_revisions = revisions()
    if before is not None and before not in known_revisions:
        raise SchemaMismatch(_unknown(before))
    if to == "base" or (to in known_revisions and before is not None and to < before):
        with _migrating(database) as connection:
            command.downgrade(config(connection), to)
            _append_migration(connection, before, to)
        return before, revision(database)
    # One transaction per revision, so that none holds the locks of all revisions.
    goal = scripts.get_revision(to).revision
    for script in reversed(list(scripts.iterate_revisions(goal, before or "base"))):
        _prepare(database, script)
        with _migrating(database) as connection:
            # Another process that migrates at the same time may have been first.
            if _revision(connection) == script.down_revision:
                _upgrade(scripts, connection, script.revision)
                if script.revision == head():  # an earlier revision may have another table
                    _append_migration(connection, before, script.revision)
    return before, revision(database)


def _upgrade(scripts: "ScriptDirectory", connection: Connection, to: str) -> None:
    """Run migrations as alembic's command does, without reading every migration file again."""
    from alembic.runtime.environment import EnvironmentContext

    def steps(rev: Any, context: Any) -> Any:
        return scripts._upgrade_revs(to, rev)

    with EnvironmentContext(config(connection), scripts, fn=steps, destination_rev=to):
        scripts.run_env()


def _append_migration(connection: Connection, before: str | None, after: str) -> None:
    if inspect(connection).has_table(AuditHead.__tablename__):
        with Session(connection, join_transaction_mode="rollback_only") as session:
            audit.append(session, audit.Act.MIGRATE, {"from": before, "to": after})
            session.flush()


def _prepare(database: Database, script: "Script") -> None:
    """Run a migration's `prepare` until nothing is left, each time in its own transaction."""
    prepare = getattr(script.module, "prepare", None)
    after = None
    while prepare is not None:
        with _migrating(database) as connection:
            after = prepare(connection, after)
        if after is None:
            return


@contextmanager
def _migrating(database: Database) -> Iterator[Connection]:
    """A transaction beside old workers, in which neither side waits for the other without limit."""
    with database.engine.begin() as connection:
        _hold_migration_lock(connection)
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL lock_timeout = '10s'")
            connection.exec_driver_sql("SET LOCAL statement_timeout = '15min'")
        yield connection


def require_current(database: Database) -> None:
    """Raise SchemaMismatch unless the database is at our revision."""
    current = revision(database)
    if current == head():
        return
    if current is None:
        raise SchemaMismatch(
            f"the database {database.shown_url} has no Tidemill tables; run `tidemill migrate`"
        )
    if current not in revisions():
        raise SchemaMismatch(_unknown(current))
    raise SchemaMismatch(
        f"the database is at revision {current} and this Tidemill needs {head()}; "
        "run `tidemill migrate`"
    )


def _unknown(current: str) -> str:
    return (
        f"the database is at revision {current}, which this Tidemill does not know "
        f"(it knows up to {head()}); update Tidemill"
    )


def _hold_migration_lock(connection: Connection) -> None:
    # Two workers that migrate at once wait for each other; on SQLite the transaction is exclusive
    # anyway.
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7313)")


def _first_line(error: Any) -> str:
    return str(error.orig).strip().splitlines()[0]
