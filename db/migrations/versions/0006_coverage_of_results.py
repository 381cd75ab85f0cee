"""Adds the coverage of results."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.add_column("results", sa.Column("coverage", JSON))
    op.add_column("results", sa.Column("left_out_characters", sa.Integer))


def downgrade() -> None:
    with op.batch_alter_table("results") as results:
        results.drop_column("left_out_characters")
        results.drop_column("coverage")
