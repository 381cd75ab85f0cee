"""Creates the first tables."""

from uuid import UUID

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from db.clock import Instant

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
RUNNING = sa.text("state = 'running'")
OUTSTANDING = sa.text("finished_at IS NULL AND (published_at IS NOT NULL OR state = 'running')")
DATED = sa.text("deadline IS NOT NULL AND finished_at IS NULL")
UNPUBLISHED = sa.text("state = 'queued' AND published_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("run_key", sa.String(256), unique=True),
        sa.Column("tenant", sa.String(256), nullable=False),
        sa.Column("metadata", JSON, nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("closed_at", Instant),
    )
    op.create_index("ix_batches_name", "batches", ["name"])
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("task", sa.String(32), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("lane", sa.String(16), nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("batch_id", sa.Uuid, sa.ForeignKey("batches.id")),
        sa.Column("custom_id", sa.String(256)),
        sa.Column("idempotency_key", sa.String(256)),
        sa.Column("language", sa.String(32)),
        sa.Column("num_characters", sa.Integer, nullable=False),
        sa.Column("time_limit_seconds", sa.Double),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("owner", sa.String(128)),
        sa.Column("lease_until", Instant),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("turn_at", Instant, nullable=False),
        sa.Column("published_at", Instant),
        sa.Column("not_before", Instant),
        sa.Column("deadline", Instant),
        sa.Column("started_at", Instant),
        sa.Column("finished_at", Instant),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_message", sa.Text),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'expired')",
            name="state",
        ),
        sa.CheckConstraint("lane IN ('interactive', 'bulk')", name="lane"),
    )
    op.create_index(
        "uq_jobs_tenant_idempotency_key", "jobs", ["tenant", "idempotency_key"], unique=True
    )
    op.create_index("ix_jobs_batch_id_state", "jobs", ["batch_id", "state"])
    op.create_index("ix_jobs_custom_id", "jobs", ["custom_id"])
    op.create_index("ix_jobs_created_at_id", "jobs", ["created_at", "id"])
    op.create_index(
        "ix_jobs_unpublished",
        "jobs",
        ["model", "lane", "turn_at", "id"],
        sqlite_where=UNPUBLISHED,
        postgresql_where=UNPUBLISHED,
    )
    op.create_index(
        "ix_jobs_outstanding",
        "jobs",
        ["model", "published_at"],
        sqlite_where=OUTSTANDING,
        postgresql_where=OUTSTANDING,
    )
    op.create_index(
        "ix_jobs_deadline",
        "jobs",
        ["deadline"],
        sqlite_where=DATED,
        postgresql_where=DATED,
    )
    op.create_index(
        "ix_jobs_running",
        "jobs",
        ["lease_until"],
        sqlite_where=RUNNING,
        postgresql_where=RUNNING,
    )
    op.create_table(
        "payloads",
        _job_id(),
        sa.Column("contract", JSON, nullable=False),
        sa.Column("metadata", JSON, nullable=False),
    )
    op.create_table(
        "results",
        _job_id(),
        sa.Column("output", sa.Text, nullable=False),
        sa.Column("alternatives", JSON, nullable=False),
        sa.Column("finish_reason", sa.String(16), nullable=False),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("completion_tokens", sa.Integer, nullable=False),
        sa.Column("provenance", JSON, nullable=False),
    )
    op.create_table(
        "segments",
        _job_id(),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("output", JSON, nullable=False),
        sa.Column("created_at", Instant, nullable=False),
    )
    op.create_table(
        "attempts",
        _job_id(),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("owner", sa.String(128)),
        sa.Column("started_at", Instant),
        sa.Column("ended_at", Instant, nullable=False),
        sa.Column("next_state", sa.String(16), nullable=False),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_message", sa.Text),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("room", JSON, nullable=False),
        sa.Column("num_running", sa.Integer, nullable=False),
        sa.Column("started_at", Instant, nullable=False),
        sa.Column("alive_until", Instant, nullable=False),
    )
    op.create_table(
        "leaderships",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("leader", sa.String(128), nullable=False),
        sa.Column("until", Instant, nullable=False),
    )


def _job_id() -> sa.Column[UUID]:
    return sa.Column(
        "job_id", sa.Uuid, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )


def downgrade() -> None:
    for table in (
        "leaderships",
        "workers",
        "attempts",
        "segments",
        "results",
        "payloads",
        "jobs",
        "batches",
    ):
        op.drop_table(table)
