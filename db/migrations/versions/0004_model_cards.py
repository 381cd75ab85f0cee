"""Creates a table of model cards."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from db.clock import Instant

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "model_cards",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("content", JSON, nullable=False),
        sa.Column("created_at", Instant, nullable=False),
    )
    # Nullable: a worker of the revision before may write results while this runs, and after it.
    op.add_column("results", sa.Column("model_card_id", sa.Uuid))


def downgrade() -> None:
    op.drop_column("results", "model_card_id")
    op.drop_table("model_cards")
