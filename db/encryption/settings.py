"""Encryption settings: the [encryption] table of `tidemill.toml`, which says where the keys are.

[encryption]
keys_file = "/etc/tidemill/keys"        # or
keys_variable = "ACME_TIDEMILL_KEYS"    # the environment variable that holds them
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from db.connection.address import config_file
from db.encryption.key_ring import KeyRing, KeysUnusable, key_ring

SETTINGS = ("keys_file", "keys_variable")


def configured_keys(environment: Mapping[str, str], folder: Path) -> KeyRing | None:
    """The keys that the table names; None without the table. Raises KeysUnusable.

    If the named keys do not exist, this raises; texts are never left unencrypted instead.
    """
    path = config_file(environment, folder)
    file, variable = _table(path)
    if file is not None:
        return key_ring({"TIDEMILL_KEYS_FILE": str(file)})
    if variable is None:
        return None
    if not (keys := environment.get(variable)):
        raise KeysUnusable(f"{path}: encryption.keys_variable is {variable}, which is not set")
    return KeyRing.parse(keys, variable)


def keys_file(environment: Mapping[str, str], folder: Path) -> Path | None:
    """The file with the keys; None if the keys are elsewhere. Raises KeysUnusable."""
    if environment.get("TIDEMILL_KEYS"):
        return None
    if file := environment.get("TIDEMILL_KEYS_FILE"):
        return Path(file)
    return _table(config_file(environment, folder))[0]


def keys_variable(environment: Mapping[str, str], folder: Path) -> str | None:
    """The environment variable that the table names for keys. Raises KeysUnusable."""
    return _table(config_file(environment, folder))[1]


def _table(path: Path) -> tuple[Path | None, str | None]:
    """The file and the variable in a configuration's table; at most one is set."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("encryption")
    except (OSError, ValueError):
        return None, None  # the code that needs the file reports the error
    if table is None:
        return None, None
    file, variable = _read(path, table)
    return None if file is None else path.parent / Path(file).expanduser(), variable


def _read(path: Path, table: Any) -> tuple[str | None, str | None]:
    if not isinstance(table, dict):
        raise KeysUnusable(f"{path}: encryption is not a table; write [encryption]")
    for name, value in table.items():
        if name not in SETTINGS:
            raise KeysUnusable(
                f"{path}: encryption.{name} is not a setting; known: {', '.join(SETTINGS)}"
            )
        if not isinstance(value, str) or not value:
            raise KeysUnusable(f"{path}: encryption.{name} must be a text, not {value!r}")
    if len(table) != 1:
        raise KeysUnusable(f"{path}: [encryption] has one of {' and '.join(SETTINGS)}")
    return table.get("keys_file"), table.get("keys_variable")
