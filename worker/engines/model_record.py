"""Compares the hashes of a loaded model's files with those of the model that answered before."""

from collections.abc import Mapping
from typing import Any

from db.queries.model_cards import newest_card
from db.session import Database
from engine.protocol.model_card import ModelCard


def changed_files(database: Database, card: ModelCard) -> dict[str, Any] | None:
    """The weight files that differ since a model of this alias and checkpoint last answered.

    None if no file differs, or nothing is known: another checkpoint under the alias is no change of
    a file, and old cards have no hashes. JSON-able.
    """
    with database.read() as session:
        newest = newest_card(session, card.alias)
    if newest is None:
        return None
    before, kept_at = newest
    old: Mapping[str, str] = before.get("weight_files") or {}
    if before.get("checkpoint") != card.checkpoint or not old or old == card.weight_files:
        return None
    names = sorted(
        name
        for name in old.keys() | card.weight_files.keys()
        if old.get(name) != card.weight_files.get(name)
    )
    return {"files": names, "revision_before": before.get("revision"), "kept_at": str(kept_at)}
