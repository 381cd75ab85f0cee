"""`tidemill backup`: copies an embedded database while it is in use."""

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.output.terminal import say, write_json


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The copy; must not exist yet.")],
    json: options.Json = False,
) -> None:
    """Copy an embedded (SQLite) database while jobs run, and check the copy.

    The copy has everything that was committed up to one moment. The file appears only when it is
    complete. docs/operations.md says how to restore it, and how to back up PostgreSQL.
    """
    from cli.stack.ready import require_ready
    from db.upkeep.backup import back_up

    copied = back_up(require_ready(), file)
    if json:
        write_json({"file": str(file), "bytes": copied.num_bytes, "jobs": copied.num_jobs})
    else:
        say(f"{file}: {copied.num_bytes:,} bytes, {copied.num_jobs:,} jobs, checked")
