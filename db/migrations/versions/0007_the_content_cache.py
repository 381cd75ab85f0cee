"""Creates the table of the content cache."""

import sqlalchemy as sa
from alembic import op

from db.clock import Instant

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cache_entries",
        sa.Column("key", sa.LargeBinary(32), primary_key=True),
        sa.Column("tenant", sa.String(128)),
        sa.Column("output", sa.LargeBinary, nullable=False),
        sa.Column("num_bytes", sa.Integer, nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("used_at", Instant, nullable=False),
    )
    op.create_index("ix_cache_entries_created_at", "cache_entries", ["created_at"])
    op.create_index("ix_cache_entries_used_at_num_bytes", "cache_entries", ["used_at", "num_bytes"])
    op.add_column("results", sa.Column("cached_parts", sa.Integer))


def downgrade() -> None:
    with op.batch_alter_table("results") as results:
        results.drop_column("cached_parts")
    op.drop_table("cache_entries")
