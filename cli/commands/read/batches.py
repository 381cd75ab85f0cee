"""`tidemill batches`: lists batches and their progress."""

from typing import Annotated

import typer

from cli import options
from cli.output.terminal import note, one_line, print_table, say, table, write_json


def batches(
    limit: Annotated[int, typer.Option(min=1, help="The most batches to list.")] = 20,
    json: options.Json = False,
) -> None:
    """List batches, newest first, with their jobs by state."""
    from cli.output.progress import states_in_words
    from cli.stack.ready import require_ready
    from db.reading.batches import find_batches

    rows = find_batches(limit=limit, database=require_ready())
    if json:
        write_json(
            [
                {
                    "id": str(batch.id),
                    "name": batch.name,
                    "run_key": batch.run_key,
                    "tenant": batch.tenant,
                    "metadata": dict(batch.metadata),
                    "created_at": batch.created_at.isoformat(),
                    "closed_at": batch.closed_at.isoformat() if batch.closed_at else None,
                    "num_jobs": batch.num_jobs,
                    "states": {state.value: num for state, num in batch.states.items()},
                }
                for batch in rows
            ]
        )
        return
    if not rows:
        say("no batches yet; `tidemill submit TASK --file FILE` makes one")
        return
    listing = table("name", "run key", "enqueued", "jobs", "states")
    for batch in rows:
        growing = "" if batch.closed_at else " +"
        listing.add_row(
            one_line(batch.name, 60),
            one_line("same" if batch.run_key == batch.name else batch.run_key or "", 60),
            f"{batch.created_at.astimezone():%Y-%m-%d %H:%M}",
            f"{batch.num_jobs:,}{growing}",
            states_in_words(batch),
        )
    print_table(listing)
    if len(rows) == limit:
        note(f"the newest {limit}; --limit shows more")
