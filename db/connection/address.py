"""Addresses of the database and Redis: from the environment, or from this folder's `tidemill up`.

`tidemill up` writes the addresses of its parts into its data folder: `stores.json` once the
database can be used, for good, and `run.json` while it runs jobs. Commands in the same folder need
no settings, and can read and submit jobs even while nothing runs.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy.engine import URL

from db.connection.database_url import file_url

RUN_FILE = "run.json"
STORES_FILE = "stores.json"
DATABASE_FILE = "tidemill.db"
DATA_DIR = ".tidemill"
CONFIG_FILE = "tidemill.toml"


class AddressUnknown(Exception):
    """No setting gives the service's address; the message names the possible settings."""


def data_dir(environment: Mapping[str, str], folder: Path) -> Path:
    return folder / (environment.get("TIDEMILL_DATA_DIR") or DATA_DIR)


def running_up(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The `run.json` of a running `tidemill up` in this folder; empty if none is running."""
    written = _written(data_dir(environment, folder) / RUN_FILE)
    return written if _lives(written.get("pid", "")) else {}


def killed_up(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The `run.json` that a killed `tidemill up` could not remove; else empty."""
    written = _written(data_dir(environment, folder) / RUN_FILE)
    return {} if _lives(written.get("pid", "")) else written


def last_up(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The addresses of the running `tidemill up`, or else of the last one."""
    return running_up(environment, folder) or _written(data_dir(environment, folder) / STORES_FILE)


def is_starting(environment: Mapping[str, str], folder: Path) -> bool:
    """Whether the last `tidemill up` is alive but runs no jobs: it is loading or stopping."""
    pid = last_up(environment, folder).get("pid", "")
    return pid.isdigit() and not running_up(environment, folder) and _lives(pid)


def config_file(environment: Mapping[str, str], folder: Path) -> Path:
    """The path of the configuration, whether or not the file exists."""
    if named := environment.get("TIDEMILL_CONFIG"):
        return folder / named
    own = folder / CONFIG_FILE
    last = last_up(environment, folder).get("config")
    lives = running_up(environment, folder) or is_starting(environment, folder)
    # If no stack runs, the folder's own configuration goes before the one that was used here last.
    return Path(last) if last and (lives or not own.is_file()) else own


def database_url(environment: Mapping[str, str], folder: Path) -> str:
    address = database_address(environment, folder)
    return address if isinstance(address, str) else address.render_as_string(hide_password=False)


def database_address(environment: Mapping[str, str], folder: Path) -> str | URL:
    """The database URL from the environment, or that of the data folder's own database."""
    named = environment.get("TIDEMILL_DATABASE_URL")
    if address := named or last_up(environment, folder).get("database_url"):
        return address
    # The path is built from the folder's present place, since a folder may be moved.
    file = data_dir(environment, folder) / DATABASE_FILE
    if file.is_file():
        return file_url(Path(os.path.abspath(file)))
    raise _unknown("TIDEMILL_DATABASE_URL", folder)


def is_named(environment: Mapping[str, str]) -> bool:
    """Whether the environment names a database."""
    return bool(environment.get("TIDEMILL_DATABASE_URL"))


def redis_url(environment: Mapping[str, str], folder: Path) -> str:
    """The URL of Redis.

    If no `up` is running, this is the last one's: a job is then stored but not published.
    """
    named = environment.get("TIDEMILL_REDIS_URL")
    address = named or last_up(environment, folder).get("redis_url")
    if not address:
        raise _unknown("TIDEMILL_REDIS_URL", folder)
    return address


def _lives(pid: str) -> bool:
    """Whether a process is alive; one with an unknown id counts as alive."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, OverflowError):
        pass  # the process is another user's, so it lives; or the id is not valid
    return True


def _written(file: Path) -> dict[str, str]:
    try:
        written = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return {key: str(value) for key, value in written.items()} if isinstance(written, dict) else {}


def _unknown(variable: str, folder: Path) -> AddressUnknown:
    return AddressUnknown(
        f"{variable} is not set and no `tidemill up` runs in {folder}, nor did before; "
        "set it, or start one here with `tidemill up`"
    )
