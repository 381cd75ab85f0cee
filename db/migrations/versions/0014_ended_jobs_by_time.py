"""the ended jobs of a model and task by time, for samples of them"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

ENDED = sa.text("state IN ('succeeded', 'failed')")


def upgrade() -> None:
    op.create_index(
        "ix_jobs_ended",
        "jobs",
        ["model", "task", "finished_at", "id"],
        sqlite_where=ENDED,
        postgresql_where=ENDED,
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_ended", "jobs")
