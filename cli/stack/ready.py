"""Checks that the database is ready before a command uses it."""

import os
from pathlib import Path

from cli.output.terminal import note
from db.connection.address import data_dir, is_named, is_starting, killed_up, running_up
from db.schema import require_current
from db.session import Database
from tasks.configuration import settings


def require_ready() -> Database:
    """The database, reachable and at our revision; raises DatabaseError or SettingsError.

    Prints a note if it belongs to a `tidemill up` that runs no jobs now: reading and submitting
    need no worker.
    """
    database = settings.database()
    require_current(database)
    place = os.environ, Path.cwd()
    if _is_of_up_alone():
        folder = data_dir(*place)
        if killed_up(*place):
            note(
                f"the `tidemill up` of {folder} was killed; no job is run until you start it again"
            )
        elif is_starting(*place):
            note(f"the `tidemill up` of {folder} runs no jobs yet (or no longer); they are kept")
        else:
            note(
                f"no `tidemill up` runs in {folder.parent}; this is what is kept in {folder}, "
                "and no job is run until you start it again"
            )
    return database


def start_command() -> str:
    """The command that starts a worker here: `up` in a folder whose `up` has stopped."""
    return "`tidemill up`" if _is_of_up_alone() else "`tidemill worker`"


def _is_of_up_alone() -> bool:
    """Whether the database belongs to this folder's `up`, which runs no jobs now."""
    return not is_named(os.environ) and not running_up(os.environ, Path.cwd())


def say_if_nobody_works() -> None:
    """Print a note if no worker lives, so that a user does not wait in vain."""
    from db.queries import worker_registry

    if _is_of_up_alone():
        return  # `require_ready` has said it
    with settings.database().read() as session:
        if session.scalars(worker_registry.live_workers()).first() is None:
            note("no worker is running; start one with `tidemill worker`")
