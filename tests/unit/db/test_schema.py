"""Migrations lead to the models, up and down, on both databases."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from db import schema
from db.errors import DatabaseError
from db.models import Base
from db.session import Database


def test_migrations_lead_to_the_models(empty_database: Database) -> None:
    schema.migrate(empty_database)
    with empty_database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrations_go_up_down_and_up_again(empty_database: Database) -> None:
    head = schema.head()
    assert schema.migrate(empty_database) == (None, head)
    assert schema.migrate(empty_database, "base") == (head, None)
    assert set(inspect(empty_database.engine).get_table_names()) <= {"alembic_version"}
    assert schema.migrate(empty_database) == (None, head)
    assert set(Base.metadata.tables) <= set(inspect(empty_database.engine).get_table_names())


def test_migrating_twice_changes_nothing(empty_database: Database) -> None:
    schema.migrate(empty_database)
    assert schema.migrate(empty_database) == (schema.head(), schema.head())


def test_migrations_form_one_line_and_their_files_begin_with_their_revisions() -> None:
    scripts = ScriptDirectory.from_config(schema.config()).walk_revisions()
    assert [script.revision for script in scripts] == schema.revisions()[::-1]
    assert all(not script.is_branch_point for script in scripts)


def test_an_empty_database_is_refused_with_the_remedy(empty_database: Database) -> None:
    with pytest.raises(schema.SchemaMismatch, match="tidemill migrate"):
        schema.require_current(empty_database)


def test_a_newer_database_is_refused_with_the_remedy(empty_database: Database) -> None:
    schema.migrate(empty_database)
    with empty_database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(schema.SchemaMismatch, match=r"9999.*update Tidemill"):
        schema.require_current(empty_database)
    with pytest.raises(schema.SchemaMismatch, match=r"9999.*update Tidemill"):
        schema.migrate(empty_database)


def test_an_absent_database_is_named_without_its_password() -> None:
    database = Database("postgresql://someone:secret@127.0.0.1:1/none")
    with pytest.raises(DatabaseError, match=r"cannot be reached: .*; start it, or say") as raised:
        schema.require_current(database)
    assert "secret" not in str(raised.value)
