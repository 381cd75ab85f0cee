"""Databases with our tables, created in a tenth of the time of the migrations."""

from alembic.runtime.migration import MigrationContext

from db import schema
from db.models import Base
from db.session import Database


def make_tables(database: Database, is_recorded: bool = False) -> None:
    """Create in an empty database what the migrations create; tests/unit/db/test_schema.py
    compares.

    is_recorded: in the audit, as `schema.migrate` does
    """
    with database.engine.begin() as connection:
        Base.metadata.create_all(connection, checkfirst=False)
        versions = MigrationContext.configure(connection)._version
        versions.create(connection)
        connection.execute(versions.insert().values(version_num=schema.head()))
        if is_recorded:
            schema._append_migration(connection, None, schema.head())
