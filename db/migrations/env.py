"""Runs migrations on the connection that `db.schema` hands over."""

from alembic import context

from db.models import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite alters a table by making it anew
    compare_type=True,
)
if connection.dialect.name == "postgresql":
    # A migration may run while old workers do; it must not wait for them for ever,
    # nor they for it.
    connection.exec_driver_sql("SET LOCAL lock_timeout = '10s'")
    connection.exec_driver_sql("SET LOCAL statement_timeout = '15min'")
with context.begin_transaction():
    context.run_migrations()
