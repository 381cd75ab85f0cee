"""Model cards: one row for each model as it was loaded; results refer to it."""

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Insert, select
from sqlalchemy.orm import Session

from db.models import ModelCardRow
from db.queries.inserts import insert_unless_there


def model_card_id(content: Mapping[str, Any]) -> UUID:
    """The id of a model card: half of the SHA-256 of its content, independent of key order.

    So two workers that load the same model write the same row without coordination.
    """
    global _recent
    for known, card_id in _recent:
        if known == content:
            return card_id
    card_id = _digest(content)
    _recent = ((deepcopy(dict(content)), card_id), *_recent[: MAX_RECENT - 1])
    return card_id


MAX_RECENT = 16
# A worker writes the same few cards with every result; comparing a card takes a tenth of the time
# of hashing it.
_recent: tuple[tuple[dict[str, Any], UUID], ...] = ()


def _digest(content: Mapping[str, Any]) -> UUID:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return UUID(bytes=hashlib.sha256(text.encode()).digest()[:16])


def insert_model_cards(session: Session) -> Insert:
    """Insert model cards, each once."""
    return insert_unless_there(session, ModelCardRow)


def newest_card(session: Session, alias: str) -> tuple[Mapping[str, Any], datetime] | None:
    """The newest card of a model and its instant; None if the model has not answered yet.

    There is one for each checkpoint and set of versions that ever answered, so few that all of them
    are read.
    """
    rows = session.scalars(select(ModelCardRow).order_by(ModelCardRow.created_at.desc()))
    return next(
        ((row.content, row.created_at) for row in rows if row.content.get("alias") == alias), None
    )
