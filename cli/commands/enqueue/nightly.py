"""`tidemill nightly`: enqueues the batch of a nightly configuration, once for each run key."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.output.terminal import plural, say


def nightly(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration, in TOML.")],
    day: Annotated[
        datetime | None,
        typer.Option(
            "--date", formats=["%Y-%m-%d"], help="The {date} of the configuration; default today."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and check everything, enqueue nothing.")
    ] = False,
    estimate: options.Estimate = False,
    wait: options.Wait = False,
    strict: options.Strict = False,
    errors: options.Errors = None,
    json: options.Json = False,
) -> None:
    """Enqueue a batch from files, folders or queries, once for its run key.

    A second start with the same run key enqueues nothing and is no error. A bad row is reported
    with its number, and the other rows are enqueued; the same holds for a source without rows. The
    exit status is then 1.
    """
    from cli.commands.enqueue.submit import finish, warn_of_sources
    from cli.ingest.enqueue import Complaints, complete_batch, enqueue
    from cli.ingest.nightly_config import NightlyConfig
    from cli.ingest.row_parsing import RowParser
    from cli.stack.ready import require_ready
    from tasks.configuration import settings

    night = NightlyConfig.load(config)
    today = day.date() if day is not None else night.today()
    run_key, name = night.run_key_of(today), night.batch_of(today)
    catalog = settings.catalog()
    if not dry_run:
        require_ready()
    folder = config.resolve().parent
    complaints = Complaints(errors or night.errors_of(folder, today))
    # A source may be gone once its night is done; a second start is harmless all the same.
    done = not (dry_run or estimate) and complete_batch(run_key) is not None
    parts = [] if done else night.parts_of(folder, today)
    for part in parts:
        part.check_defaults(catalog)
    parser = RowParser(parts, catalog, run_key, complaints.report, complaints.keep)
    if estimate:
        from cli.estimate import estimate_source

        estimate_source(parser, catalog, complaints, json)
        return
    if dry_run:
        with complaints.opened(parts):
            parser.check()
        say(
            f"would enqueue {plural(parser.num_good, 'job')} as batch {name} under run key "
            f"{run_key}, and leave out {plural(parser.num_bad, 'row')}"
        )
        warn_of_sources(parser.empty, parser.failures, is_night=True)
        if parser.num_bad or not parser.is_complete:
            raise typer.Exit(1)
        return
    enqueued = enqueue(
        parser,
        complaints,
        name=name,
        run_key=run_key,
        tenant=night.tenant,
        metadata=night.metadata_of(today),
        strict=strict,
    )
    if enqueued.batch is None and not enqueued.num_bad and parser.is_complete:
        say("there is nothing to do: the source has no rows")
        return
    finish(enqueued, wait, json, is_night=True)
