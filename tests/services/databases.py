"""Databases with our tables, made at one stroke, which takes a tenth of the time of migrations."""

from alembic.runtime.migration import MigrationContext

from db import schema
from db.models import Base
from db.session import Database


def make_tables(database: Database, is_recorded: bool = False) -> None:
    """Make of an empty database what migrations do: tests/unit/db/test_schema.py compares.

    is_recorded: in the audit, as `schema.migrate` does
    """
    with database.engine.begin() as connection:
        Base.metadata.create_all(connection, checkfirst=False)
        versions = MigrationContext.configure(connection)._version
        versions.create(connection)
        connection.execute(versions.insert().values(version_num=schema.head()))
        if is_recorded:
            schema._append_migration(connection, None, schema.head())
