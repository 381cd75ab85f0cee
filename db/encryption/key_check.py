"""The key check: a process without the key of the newest text ends before it begins."""

import contextlib

from sqlalchemy import select

from db.encryption.key_ring import Unopenable
from db.models import Payload
from db.session import Database


def require_keys(database: Database) -> None:
    """Raise KeysUnusable where this process lacks the key of the text that was sent last."""
    newest = select(Payload.contract).order_by(Payload.job_id.desc()).limit(1)
    with contextlib.suppress(Unopenable), database.read() as session:
        session.execute(newest).first()
