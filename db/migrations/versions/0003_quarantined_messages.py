"""Creates the table of quarantined messages."""

import sqlalchemy as sa
from alembic import op

from db.clock import Instant

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "quarantined_messages",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("arrived_at", Instant, nullable=False),
        sa.Column("queue", sa.String(256), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("task", sa.String(256)),
        sa.Column("origin", sa.String(256)),
        sa.Column("job_id", sa.Uuid),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_quarantined_messages_job_id", "quarantined_messages", ["job_id"])


def downgrade() -> None:
    op.drop_table("quarantined_messages")
