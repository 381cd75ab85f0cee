"""Settings of this process, from the environment and `tidemill.toml`.

Redis and the database are named by `TIDEMILL_REDIS_URL` and `TIDEMILL_DATABASE_URL`, or are those
of this folder's `tidemill up`. The models are in `tidemill.toml` in this folder, or in the file
that `TIDEMILL_CONFIG` names.
"""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from db.connection.address import AddressUnknown, config_file, redis_url
from db.errors import DatabaseUrlInvalid
from db.session import Database, database_from_environment
from tasks.configuration.catalog import Catalog
from tasks.configuration.redis_url import read_redis_url
from tasks.errors import SettingsError


def config_path(environment: Mapping[str, str], folder: Path) -> Path:
    """The configuration file; raises SettingsError if there is none."""
    path = config_file(environment, folder)
    if not path.is_file():
        raise SettingsError(
            f"there is no {path}; a configuration names the models, for example\n\n"
            "[models.reports]\n"
            'checkpoint = "facebook/bart-large-cnn"\n'
            'tasks = ["summarize"]\n\n'
            "Put it there, or say where it is with TIDEMILL_CONFIG."
        )
    return path


@cache
def catalog() -> Catalog:
    """The models of this process's configuration, read once."""
    return Catalog.load(config_path(os.environ, Path.cwd()))


@cache
def database() -> Database:
    """The database of this process. It connects at first use."""
    try:
        return database_from_environment()
    except (AddressUnknown, DatabaseUrlInvalid) as error:
        raise SettingsError(str(error)) from error


def served_models() -> tuple[str, ...]:
    """The aliases in `TIDEMILL_MODELS` that a worker must serve; empty: all of them."""
    return tuple(filter(None, os.environ.get("TIDEMILL_MODELS", "").split(",")))


def broker_url() -> str:
    """The URL of Redis; Celery's own default if no setting names one.

    Raises SettingsError if the setting is invalid.
    """
    try:
        return read_redis_url(redis_url(os.environ, Path.cwd()))
    except AddressUnknown:
        return "redis://localhost:6379/0"
