"""Key check: a process that lacks the keys of the newest texts is refused before it starts.

A producer without keys would store in clear what others encrypt, and a worker with wrong keys of
the same names would fail every job.
"""

from weakref import WeakSet

from sqlalchemy import Text, cast, select

from db.encryption.key_ring import KeyRing, KeysUnusable, Unopenable
from db.encryption.sealed import SealedJSON, row_key
from db.models import Payload
from db.session import Database

NEWEST = 20  # values that are tried, since a process without keys may have written the last
FEW = 3  # fewer values that do not open may have been changed in the database

_checked: WeakSet[Database] = WeakSet()


def require_keys(database: Database) -> None:
    """Raise KeysUnusable if this process lacks a key of the most recent texts."""
    keys = database.keys
    contract = Payload.__table__.c.contract
    newest = (
        select(Payload.job_id, contract if keys is None else cast(contract, Text))
        .where(Payload.pruned_at.is_(None))
        .order_by(Payload.job_id.desc())
        .limit(NEWEST)
    )
    with database.read() as session:
        rows = session.execute(newest).all()  # a sealed value raises if there are no keys
    if keys is None:
        return
    num_opened: dict[str, int] = {}
    num_closed: dict[str, int] = {}
    for job_id, stored in rows:
        name, opens = _opens(stored, row_key([job_id]), keys)
        if name is not None:
            counts = num_opened if opens else num_closed
            counts[name] = counts.get(name, 0) + 1
    for name, num in num_closed.items():
        if num >= FEW and name not in num_opened:
            raise KeysUnusable(
                f"none of the newest {num} texts that the key {name} has sealed opens: this "
                "process has another key of that name, or all were changed in the database"
            )


def _opens(stored: str, key: str, keys: KeyRing) -> tuple[str | None, bool]:
    """The key's name of a stored text, None for a plain one, and whether it can be decrypted."""
    type_ = Payload.__table__.c.contract.type
    assert isinstance(type_, SealedJSON)
    try:
        sealed = type_.sealed_in(type_.from_text(stored))
    except ValueError:
        return None, False
    if sealed is None:
        return None, True
    try:
        keys.open(*sealed, type_.place(key))
    except Unopenable:
        return sealed[0], False
    return sealed[0], True


def require_keys_once(database: Database) -> None:
    """Check the keys before this process writes its first text; later calls cost nothing."""
    if database not in _checked:
        require_keys(database)
        _checked.add(database)
