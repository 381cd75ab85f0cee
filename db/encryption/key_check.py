"""The key check: a process without the keys of the newest texts ends, or is refused, before it
begins. A producer without them would write in clear what others encrypt."""

import contextlib
from weakref import WeakSet

from sqlalchemy import select

from db.encryption.key_ring import Unopenable
from db.models import Payload
from db.session import Database

NEWEST = 20  # looked at, for the last may be one that a process without keys has written

_checked: WeakSet[Database] = WeakSet()


def require_keys(database: Database) -> None:
    """Raise KeysUnusable where this process lacks a key of the texts that were sent last."""
    newest = select(Payload.contract).where(Payload.pruned_at.is_(None))
    with contextlib.suppress(Unopenable), database.read() as session:
        session.execute(newest.order_by(Payload.job_id.desc()).limit(NEWEST)).all()


def require_keys_once(database: Database) -> None:
    """The same before the first text that this process writes; later calls cost nothing."""
    if database not in _checked:
        require_keys(database)
        _checked.add(database)
