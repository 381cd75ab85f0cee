"""Adds the quality signals of results."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

COLUMNS: tuple[tuple[str, Any], ...] = (
    ("length_ratio", sa.Double()),
    ("repetition", sa.Double()),
    ("detected_language", sa.String(32)),
    ("untranslated_share", sa.Double()),
    ("num_empty_parts", sa.Integer()),
    ("num_cut_parts", sa.Integer()),
    ("num_missed_placeholders", sa.Integer()),
    ("num_missed_terms", sa.Integer()),
    ("suspicions", sa.String(256)),
)


def upgrade() -> None:
    for name, kind in COLUMNS:
        op.add_column("results", sa.Column(name, kind))


def downgrade() -> None:
    with op.batch_alter_table("results") as results:
        for name, _ in reversed(COLUMNS):
            results.drop_column(name)
