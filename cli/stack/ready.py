"""Ready: what a command needs of the database before it begins."""

import os
from pathlib import Path

from cli.output.terminal import note
from db.connection.address import data_dir, is_named, is_starting, running_up
from db.schema import require_current
from db.session import Database
from tasks.configuration import settings


def require_ready() -> Database:
    """The database, reachable and at our revision; raises DatabaseError or SettingsError.

    Says so where it is that of a `tidemill up` that runs no jobs now: reading and
    keeping need no worker.
    """
    database = settings.database()
    require_current(database)
    place = os.environ, Path.cwd()
    if not is_named(os.environ) and not running_up(*place):
        folder = data_dir(*place)
        if is_starting(*place):
            note(f"the `tidemill up` of {folder} runs no jobs yet (or no longer); they are kept")
        else:
            note(
                f"no `tidemill up` runs in {folder.parent}; this is what is kept in {folder}, "
                "and no job is run until you start it again"
            )
    return database


def say_if_nobody_works() -> None:
    """Print a note if no worker lives, so that a user does not wait in vain."""
    from db.queries import worker_registry

    with settings.database().read() as session:
        if session.scalars(worker_registry.live_workers()).first() is None:
            note("no worker is running; start one with `tidemill worker`")
