"""Inserts into bare tables that skip existing rows."""

from typing import cast

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from db.models import Base


def insert_unless_there(session: Session, model: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """An insert that skips, without an error, rows whose unique values exist."""
    dialect = session.get_bind().dialect.name
    build = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return build(table(model)).on_conflict_do_nothing()


def table(model: type[Base]) -> Table:
    # The bare table: an ORM insert would look at every row in Python.
    return cast(Table, model.__table__)
