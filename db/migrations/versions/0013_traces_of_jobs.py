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
    # Not by making the table anew, on SQLite either: results go with the rows of the old one.
    op.drop_column("jobs", "traceparent")
