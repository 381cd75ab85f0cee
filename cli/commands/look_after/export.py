"""`tidemill export`: writes every row that is stored for a person or a tenant."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.output.terminal import note, plural
from cli.person_selection import Metadata, Tenant


def export(
    tenant: Tenant = None,
    metadata: Metadata = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A file, which appears only when it is complete."),
    ] = None,
) -> None:
    """Write everything that is stored for a tenant, or for a person by metadata, as JSON lines.

    A line is a batch, a job with everything that belongs to it, or a message that could not be
    taken; `kind` says which. The export is recorded in the audit.
    """
    from cli.output.escaping import json_text
    from cli.output.files.output_file import opened
    from cli.person_selection import person_of
    from cli.stack.ready import require_ready
    from db.upkeep import erasure

    person = person_of(tenant, metadata)
    database = require_ready()
    num_lines = num_unopenable = 0
    with opened(output) as to:
        for line in erasure.export(database, person):
            encoding = "utf-8" if output is not None else (sys.stdout.encoding or "utf-8")
            to.write((json_text(line, encoding) + "\n").encode("utf-8"))
            num_lines += 1
            num_unopenable += "unopenable" in line
    note(f"{plural(num_lines, 'line')} written")
    if num_unopenable:
        note(
            f"{plural(num_unopenable, 'job')} with texts that do not open; `unopenable` says which"
        )
