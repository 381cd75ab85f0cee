"""Known answers: documents whose requests the content cache answers.

The cache knows parts, by what the model as it is loaded makes of them; an estimate knows
neither. But what was asked before word for word, of the same model, was kept then.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from db import models
from db.queries import throughput
from db.session import Database

LENGTHS_AT_ONCE = 200


def has_content_cache() -> bool:
    """Whether answers are kept for other jobs at all."""
    return hasattr(models, "CacheEntry")


def contract_digest(work: Mapping[str, Any]) -> bytes:
    """The digest of a job's contract."""
    return sha256(json.dumps(work, sort_keys=True).encode()).digest()[:16]


def known_answers(
    database: Database, model: str, task: str, tenant: str, lengths_by_digest: Mapping[bytes, int]
) -> frozenset[bytes]:
    """The digests that were answered before."""
    answered_digests = set()
    with database.read() as session:
        lengths = sorted(set(lengths_by_digest.values()))
        for start in range(0, len(lengths), LENGTHS_AT_ONCE):
            some = lengths[start : start + LENGTHS_AT_ONCE]
            statement = throughput.contracts_of_length(model, task, tenant, some)
            for _, contract in session.execute(statement.execution_options(yield_per=100)):
                digest = contract_digest(contract)
                if digest in lengths_by_digest:
                    answered_digests.add(digest)
    return frozenset(answered_digests)
