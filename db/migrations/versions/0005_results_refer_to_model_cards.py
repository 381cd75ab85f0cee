"""Moves the model cards of existing results to their table.

`prepare` does it, in transactions of some hundred rows each, before the revision is written; an
interrupted run continues where it stopped. A worker of an older revision may insert results
meanwhile; results that it adds later keep their card.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql, sqlite

from db.clock import Instant, now

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BATCH_ROWS = 500
JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
OF_THE_RESULT = {"settings"}  # fields that stay with the result; all others go to the model card

results = sa.table(
    "results",
    sa.column("job_id", sa.Uuid),
    sa.column("provenance", JSON),
    sa.column("model_card_id", sa.Uuid),
)
model_cards = sa.table(
    "model_cards",
    sa.column("id", sa.Uuid),
    sa.column("content", JSON),
    sa.column("created_at", Instant),
)
write_result = (
    sa.update(results)
    .where(results.c.job_id == sa.bindparam("of_job"))
    .values(provenance=sa.bindparam("rest"), model_card_id=sa.bindparam("card"))
)


def prepare(connection: sa.Connection, after: UUID | None) -> UUID | None:
    """Move the cards of one batch; returns the start of the next, None after the last."""

    kept: set[UUID] = set()

    def split(provenance: dict[str, Any], _: UUID | None) -> tuple[dict[str, Any], UUID | None]:
        rest = {name: provenance[name] for name in provenance.keys() & OF_THE_RESULT}
        card = {name: provenance[name] for name in provenance.keys() - OF_THE_RESULT}
        if not card:
            return rest, None
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        card_id = model_card_id(card)
        if card_id not in kept:
            kept.add(card_id)
            row = {"id": card_id, "content": card, "created_at": now()}
            connection.execute(insert(model_cards).values(row).on_conflict_do_nothing())
        return rest, card_id

    return _rewrite_batch(connection, after, results.c.model_card_id.is_(None), split)


def upgrade() -> None:
    """Do nothing: `prepare` has moved the rows."""


def downgrade() -> None:
    connection = op.get_bind()
    cards = dict(connection.execute(sa.select(model_cards.c.id, model_cards.c.content)).all())

    def join(provenance: dict[str, Any], card: UUID | None) -> tuple[dict[str, Any], None]:
        return {**(cards[card] if card else {}), **provenance}, None

    after: UUID | None = None
    while True:
        after = _rewrite_batch(connection, after, results.c.model_card_id.is_not(None), join)
        if after is None:
            return


def _rewrite_batch(
    connection: sa.Connection,
    after: UUID | None,
    condition: sa.ColumnElement[bool],
    rewrite: Callable[[dict[str, Any], UUID | None], tuple[dict[str, Any], UUID | None]],
) -> UUID | None:
    batch = sa.select(results).where(condition).order_by(results.c.job_id).limit(BATCH_ROWS)
    if after is not None:
        batch = batch.where(results.c.job_id > after)
    rows = connection.execute(batch).all()
    written = []
    for job_id, provenance, card in rows:
        rest, new_card = rewrite(provenance, card)
        written.append({"of_job": job_id, "rest": rest, "card": new_card})
    if written:
        connection.execute(write_result, written)
    return rows[-1].job_id if len(rows) == BATCH_ROWS else None


def model_card_id(content: dict[str, Any]) -> UUID:
    # A copy of `db.model_card` at the time of this revision. It must not change.
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return UUID(bytes=hashlib.sha256(text.encode()).digest()[:16])
