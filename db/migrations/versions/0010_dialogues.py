"""which job a chat continues, what a model thought, and the text of a refused answer"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("payloads", sa.Column("previous_job_id", sa.Uuid))
    op.add_column("results", sa.Column("reasoning", sa.Text))
    op.add_column("results", sa.Column("reasoning_tokens", sa.Integer))
    op.add_column("attempts", sa.Column("output", sa.Text))


def downgrade() -> None:
    with op.batch_alter_table("attempts") as attempts:
        attempts.drop_column("output")
    with op.batch_alter_table("results") as results:
        results.drop_column("reasoning_tokens")
        results.drop_column("reasoning")
    with op.batch_alter_table("payloads") as payloads:
        payloads.drop_column("previous_job_id")
