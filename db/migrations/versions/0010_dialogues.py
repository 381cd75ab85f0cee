"""Adds the job that a chat continues, a model's thought, and the text of a refused answer."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


COLUMNS = (
    ("payloads", "previous_job_id", sa.Uuid),
    ("results", "reasoning", sa.Text),
    ("results", "reasoning_tokens", sa.Integer),
    ("attempts", "output", sa.Text),
)


def upgrade() -> None:
    for table, name, type_ in COLUMNS:
        op.add_column(table, sa.Column(name, type_))


def downgrade() -> None:
    for table, name, _ in reversed(COLUMNS):
        op.drop_column(table, name)
