"""`tidemill prune`: removes data that is older than the retention table allows."""

from typing import Annotated

import typer

from cli import options
from cli.output.terminal import note, plural, say, write_json

SINGULAR = {"audit entries": "audit entry"}


def prune(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; print how much is due.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Prune data that is older than the retention table of tidemill.toml allows.

    The texts of a job are deleted; its row and its counts stay. Pruning goes a little at a time, so
    that jobs go on; the workers do the same every night by themselves.
    """
    from cli.output.prune_progress import PruneProgress
    from cli.stack.interrupts import Interrupts
    from cli.stack.ready import require_ready
    from db.upkeep.pruning import num_prunable
    from db.upkeep.pruning import prune as prune_rows
    from tasks.configuration import settings
    from tasks.configuration.retention import retention_of

    catalog = settings.catalog()
    retention = retention_of(catalog.retention)
    database = require_ready()
    if not retention:
        note(f"{catalog.path} has no [retention]: everything is kept")
    if retention.ages("files"):
        note("nothing is kept in files: what was read from them goes with `payloads`")
    if dry_run:
        counts = num_prunable(database, retention)
    else:
        with Interrupts() as interrupts, PruneProgress(database, retention) as progress:
            counts = prune_rows(
                database,
                retention,
                on_pruned=progress.advance,
                is_ended=interrupts.any,
                pause=interrupts.wait,
            )
    if json:
        write_json({"dry_run": dry_run, "pruned": counts})
    else:
        going = "would go" if dry_run else "went"
        some = [
            plural(num, SINGULAR.get(name, name.removesuffix("s")))
            for name, num in counts.items()
            if num
        ]
        say(f"{going}: {', '.join(some)}" if some else "nothing is old enough to go")
    if not dry_run:
        interrupts.raise_if_any()
