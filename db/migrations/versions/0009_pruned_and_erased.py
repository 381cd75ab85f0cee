"""Adds the instants at which a job's texts were pruned or erased."""

import sqlalchemy as sa
from alembic import op

from db.clock import Instant

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

COLUMNS = (
    ("jobs", "pruned_at"),
    ("jobs", "erased_at"),
    ("payloads", "pruned_at"),
    ("results", "pruned_at"),
)


def upgrade() -> None:
    for table, column in COLUMNS:
        op.add_column(table, sa.Column(column, Instant))


def downgrade() -> None:
    for table, column in reversed(COLUMNS):
        op.drop_column(table, column)
