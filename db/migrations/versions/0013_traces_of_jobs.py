"""Adds the trace of a job."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("traceparent", sa.String(64)))


def downgrade() -> None:
    # The table is not rebuilt, on SQLite either: deleting the old rows would delete their results.
    op.drop_column("jobs", "traceparent")
