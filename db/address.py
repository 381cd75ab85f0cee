"""Where the database and Redis are: in the environment, or with the `tidemill up` that runs here.

`tidemill up` writes `run.json` into its data folder; everything started in the
same folder then finds it without settings.
"""

import json
from collections.abc import Mapping
from pathlib import Path

RUN_FILE = "run.json"
DATA_DIR = ".tidemill"


class AddressUnknown(Exception):
    """Nothing says where the service is; the message names the ways to say it."""


def data_dir(environment: Mapping[str, str], folder: Path) -> Path:
    return folder / environment.get("TIDEMILL_DATA_DIR", DATA_DIR)


def running_up(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """What a `tidemill up` wrote about itself; empty when none runs in this folder."""
    try:
        written = json.loads((data_dir(environment, folder) / RUN_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {}
    return {key: str(value) for key, value in written.items()}


def database_url(environment: Mapping[str, str], folder: Path) -> str:
    return _address(environment, folder, "database_url")


def redis_url(environment: Mapping[str, str], folder: Path) -> str:
    return _address(environment, folder, "redis_url")


def _address(environment: Mapping[str, str], folder: Path, key: str) -> str:
    variable = f"TIDEMILL_{key.upper()}"
    address = environment.get(variable) or running_up(environment, folder).get(key)
    if not address:
        raise AddressUnknown(
            f"{variable} is not set and no `tidemill up` runs in {folder}; "
            "set it, or start one here with `tidemill up`"
        )
    return address
