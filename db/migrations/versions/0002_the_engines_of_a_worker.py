"""Adds the engines of a worker."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    # Nullable: a worker of the revision before may report itself while this runs.
    op.add_column("workers", sa.Column("engines", JSON))


def downgrade() -> None:
    op.drop_column("workers", "engines")
