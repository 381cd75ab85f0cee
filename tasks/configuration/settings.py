"""Settings of this process: the environment, and `tidemill.toml`.

Redis and the database come from `TIDEMILL_REDIS_URL` and
`TIDEMILL_DATABASE_URL`, or from the `tidemill up` of this folder. The
models come from `tidemill.toml` in this folder, or wherever `TIDEMILL_CONFIG`
says.
"""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from db.connection.address import AddressUnknown, is_starting, last_up, redis_url, running_up
from db.errors import DatabaseUrlInvalid
from db.session import Database, database_from_environment
from tasks.configuration.catalog import Catalog
from tasks.configuration.redis_url import read_redis_url
from tasks.errors import SettingsError

CONFIG_FILE = "tidemill.toml"


def config_path(environment: Mapping[str, str], folder: Path) -> Path:
    """The configuration file; raises SettingsError when there is none."""
    path = _config_path(environment, folder)
    if not path.is_file():
        raise SettingsError(
            f"there is no {path}; a configuration names the models, for example\n\n"
            "[models.reports]\n"
            'checkpoint = "facebook/bart-large-cnn"\n'
            'tasks = ["summarize"]\n\n'
            "Put it there, or say where it is with TIDEMILL_CONFIG."
        )
    return path


def _config_path(environment: Mapping[str, str], folder: Path) -> Path:
    if named := environment.get("TIDEMILL_CONFIG"):
        return folder / named
    own = folder / CONFIG_FILE
    last = last_up(environment, folder).get("config")
    lives = running_up(environment, folder) or is_starting(environment, folder)
    # Where none runs, the folder's own goes before what was used here last.
    return Path(last) if last and (lives or not own.is_file()) else own


@cache
def catalog() -> Catalog:
    """The models of this process's configuration, read once."""
    return Catalog.load(config_path(os.environ, Path.cwd()))


@cache
def database() -> Database:
    """The database of this process, connected to when it is first used."""
    try:
        return database_from_environment()
    except (AddressUnknown, DatabaseUrlInvalid) as error:
        raise SettingsError(str(error)) from error


def served_models() -> tuple[str, ...]:
    """The aliases that `TIDEMILL_MODELS` tells a worker to serve; none: all of them."""
    return tuple(filter(None, os.environ.get("TIDEMILL_MODELS", "").split(",")))


def broker_url() -> str:
    """The URL of Redis; Celery's own default where no setting names one.

    Raises SettingsError when what says so cannot be read.
    """
    try:
        return read_redis_url(redis_url(os.environ, Path.cwd()))
    except AddressUnknown:
        return "redis://localhost:6379/0"
