"""`tidemill migrate`: brings the database to this version's schema."""

from typing import Annotated

import typer

from cli.output.terminal import say


def migrate(
    to: Annotated[str, typer.Option(metavar="REVISION", help="The revision to reach.")] = ("head"),
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; status 1 if there is work to do.")
    ] = False,
) -> None:
    """Bring the database to this version's tables."""
    from alembic.util import CommandError as AlembicError

    from cli.errors import CommandError
    from db import schema
    from tasks.configuration import settings

    database = settings.database()
    if check:
        schema.require_current(database)
        say(f"{database.shown_url} is at revision {schema.head()}, which is ours")
        return
    try:
        before, after = schema.migrate(database, to)
    except AlembicError as error:
        raise CommandError(
            f"there is no way to revision {to!r}: {error}; the newest is {schema.head()}"
        ) from error
    if before == after:
        say(f"{database.shown_url} is at revision {after}; nothing to do")
    else:
        say(f"{database.shown_url} went from revision {before or 'none'} to {after or 'none'}")
