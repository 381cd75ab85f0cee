"""`tidemill backup`: a copy of an embedded database, while it is in use."""

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.output.terminal import say, write_json


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The copy; must not be there yet.")],
    json: options.Json = False,
) -> None:
    """Copy an embedded (SQLite) database while jobs run, and check the copy.

    The copy is what the database was at one moment, with everything committed until then. It
    is complete or not there at all. docs/operations.md says how to restore one, and what to do
    on PostgreSQL.
    """
    from cli.stack.ready import require_ready
    from db.upkeep.backup import back_up

    copied = back_up(require_ready(), file)
    if json:
        write_json({"file": str(file), "bytes": copied.num_bytes, "jobs": copied.num_jobs})
    else:
        say(f"{file}: {copied.num_bytes:,} bytes, {copied.num_jobs:,} jobs, checked")
