"""`tidemill results`: what came of jobs, found by many things, in four formats."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import typer

from cli import options
from cli.output.terminal import note, plural, print_table, say

TABLE_LIMIT = 50

Format = Literal["table", "jsonl", "csv", "parquet"]


def results(
    task: Annotated[options.TaskName | None, typer.Option(help="Of this kind.")] = None,
    batch: Annotated[str | None, typer.Option(help="Of a batch: name, run key or id.")] = None,
    state: Annotated[options.StateName, typer.Option(help="`all` for every state.")] = "succeeded",
    language: Annotated[str | None, typer.Option(help="Of the output.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Of this tenant.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Each of these pairs.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Submitted then or later, as 2026-01-31.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Submitted before.")] = None,
    text: Annotated[str | None, typer.Option(help="A part of the output, in any case.")] = None,
    custom_id: Annotated[str | None, typer.Option(help="Your own id.")] = None,
    after: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="What follows; a full table prints it.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help=f"At most so many; a table has {TABLE_LIMIT} unless told."),
    ] = None,
    format: Annotated[
        Format | None,
        typer.Option(help="How to write them; default by the name of the file, or a table."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A file, complete or not there at all."),
    ] = None,
) -> None:
    """Find jobs and their results, oldest first."""
    from cli.errors import NotFound
    from cli.output.writers import TEXT_WRITERS, results_table, write_parquet
    from cli.stack.ready import require_ready
    from db.reading import Cursor, find_batches, find_results

    format = format or _format_of(output)
    if output is not None:
        _require_place(output, format)
    if format == "parquet" and output is None and sys.stdout.isatty():
        raise typer.BadParameter("Parquet is not for the screen; give -o FILE", param_hint="-o")
    if format == "table" and limit is None:
        limit = TABLE_LIMIT
    try:
        cursor = Cursor.parse(after) if after is not None else None
    except ValueError:
        raise typer.BadParameter(
            "is no cursor; a table that does not end prints one", param_hint="--after"
        ) from None
    pairs = options.pairs("--metadata", metadata or ())
    first, last = options.instant("--since", since), options.instant("--until", until)
    database = require_ready()
    if batch is not None and not find_batches(batch, limit=1, database=database):
        raise NotFound(f"there is no batch {batch!r}; `tidemill batches` lists them")
    jobs = find_results(
        task=task,
        batch=batch,
        state=None if state == "all" else state,
        language=language,
        tenant=tenant,
        metadata=pairs,
        since=first,
        until=last,
        text=text,
        custom_id=custom_id,
        after=cursor,
        limit=limit,
        database=database,
    )
    if format == "table":
        found = list(jobs)
        if not found:
            say("no job matches" if state == "all" else f"no {state} job matches")
            return
        print_table(results_table(found))
        if len(found) == limit:
            note(f"{plural(limit, 'job')}; what follows: --after {found[-1].cursor}")
        return
    with _opened(output) as to:
        if format == "parquet":
            write_parquet(jobs, to)
        else:
            text_to = io.TextIOWrapper(to, encoding="utf-8", newline="")
            TEXT_WRITERS[format](jobs, text_to)
            text_to.detach()


def _format_of(output: Path | None) -> Format:
    """As the name of the file has it."""
    if output is None:
        return "table"
    known: dict[str, Format] = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
    format = known.get(output.suffix.lower())
    if format is None:
        raise typer.BadParameter(
            f"{output} does not say how; give it a name that ends in {', '.join(known)}, "
            "or a --format",
            param_hint="-o",
        )
    return format


def _require_place(output: Path, format: Format) -> None:
    """A usage error before anything is read, where the file cannot be what was asked for."""
    if format == "table":
        fault = "a table is for the screen; give another --format"
    elif output.is_dir():
        fault = f"{output} is a folder; name a file in it"
    elif not output.absolute().parent.is_dir():
        fault = f"there is no folder {output.parent}; make it first"
    else:
        return
    raise typer.BadParameter(fault, param_hint="-o")


@contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO]:
    """Standard output, or a file that gets its name when all is written."""
    if output is None:
        yield sys.stdout.buffer
        return
    part = output.with_name(output.name + ".part")
    try:
        with part.open("wb") as to:
            yield to
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
