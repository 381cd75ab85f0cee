"""The environment of a child process that needs no database: without our addresses and keys.

An engine runs code of others, a checkpoint's own included (`trust_remote_code`), and a crash report
may contain its environment.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from db.encryption.key_ring import KeysUnusable
from db.encryption.settings import keys_variable

SECRETS = frozenset(
    {
        "CELERY_BROKER_URL",
        "PGPASSFILE",
        "PGPASSWORD",
        "TIDEMILL_DATABASE_URL",
        "TIDEMILL_KEYS",
        "TIDEMILL_KEYS_FILE",
        "TIDEMILL_REDIS_URL",
    }
)


def without_secrets(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Remove the passwords and keys of the database, of Redis and of encryption."""
    try:
        of_keys = keys_variable(environment, Path.cwd())
    except KeysUnusable:
        of_keys = None  # the code that needs the keys reports the error
    return {
        name: value
        for name, value in environment.items()
        if name not in SECRETS and name != of_keys
    }
