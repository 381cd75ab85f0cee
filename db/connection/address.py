"""Addresses of the database and Redis: in the environment, or from this folder's `tidemill up`.

`tidemill up` writes into its data folder where its parts are: `stores.json` as
soon as the database can be used, for good, and `run.json` as long as it runs
jobs. Everything started in the same folder finds it without settings, and what
was kept can be read, and more of it kept, when nothing runs.
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
    """No setting gives the service's address; the message names the ways to give it."""


def data_dir(environment: Mapping[str, str], folder: Path) -> Path:
    return folder / (environment.get("TIDEMILL_DATA_DIR") or DATA_DIR)


def running_up(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The `run.json` that a running `tidemill up` wrote; empty when none runs in this folder."""
    written = _written(data_dir(environment, folder) / RUN_FILE)
    return written if _lives(written.get("pid", "")) else {}


def killed_up(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The `run.json` of a `tidemill up` that was killed before it could remove it; else empty."""
    written = _written(data_dir(environment, folder) / RUN_FILE)
    return {} if _lives(written.get("pid", "")) else written


def last_up(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The addresses that the running `tidemill up`, or else the last one, wrote down."""
    return running_up(environment, folder) or _written(data_dir(environment, folder) / STORES_FILE)


def is_starting(environment: Mapping[str, str], folder: Path) -> bool:
    """Whether the last `tidemill up` still lives, without running jobs: it loads, or it stops."""
    pid = last_up(environment, folder).get("pid", "")
    return pid.isdigit() and not running_up(environment, folder) and _lives(pid)


def config_file(environment: Mapping[str, str], folder: Path) -> Path:
    """Where the configuration is, or would be."""
    if named := environment.get("TIDEMILL_CONFIG"):
        return folder / named
    own = folder / CONFIG_FILE
    last = last_up(environment, folder).get("config")
    lives = running_up(environment, folder) or is_starting(environment, folder)
    # Where none runs, the folder's own goes before what was used here last.
    return Path(last) if last and (lives or not own.is_file()) else own


def database_url(environment: Mapping[str, str], folder: Path) -> str:
    address = database_address(environment, folder)
    return address if isinstance(address, str) else address.render_as_string(hide_password=False)


def database_address(environment: Mapping[str, str], folder: Path) -> str | URL:
    """The URL from the environment, or that of the data folder's own database."""
    named = environment.get("TIDEMILL_DATABASE_URL")
    if address := named or last_up(environment, folder).get("database_url"):
        return address
    # By where it is now, for a folder may be moved.
    file = data_dir(environment, folder) / DATABASE_FILE
    if file.is_file():
        return file_url(Path(os.path.abspath(file)))
    raise _unknown("TIDEMILL_DATABASE_URL", folder)


def is_named(environment: Mapping[str, str]) -> bool:
    """Whether the environment says where the database is."""
    return bool(environment.get("TIDEMILL_DATABASE_URL"))


def redis_url(environment: Mapping[str, str], folder: Path) -> str:
    """The URL of Redis; with no `up` running that of the last one, where a job is kept but not
    published."""
    named = environment.get("TIDEMILL_REDIS_URL")
    address = named or last_up(environment, folder).get("redis_url")
    if not address:
        raise _unknown("TIDEMILL_REDIS_URL", folder)
    return address


def _lives(pid: str) -> bool:
    """Whether a process lives; one whose id is not known counts as alive."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, OverflowError):
        pass  # another user's, so it lives; or no id at all
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
