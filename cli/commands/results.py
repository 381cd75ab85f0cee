"""`tidemill results`: what came of jobs, found by many things, in four formats."""

import codecs
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli import options
from cli.output.escaping import visible
from cli.output.terminal import note, out, plural, print_table, say

TABLE_LIMIT = 50

Format = Literal["table", "jsonl", "csv", "parquet"]


def results(
    task: Annotated[options.TaskName | None, typer.Option(help="Of this kind.")] = None,
    batch: Annotated[str | None, typer.Option(help="Of a batch: name, run key or id.")] = None,
    state: Annotated[
        options.StateName | None,
        typer.Option(
            help="`all` for every state; default succeeded, with --error-code every state."
        ),
    ] = None,
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
    finish_reason: Annotated[
        options.FinishReason | None,
        typer.Option(help="How the output ended: by itself, or at the limit of its length."),
    ] = None,
    error_code: Annotated[
        str | None, typer.Option(metavar="CODE", help="Of the error, as prompt_too_long.")
    ] = None,
    min_duration: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Ran so long or longer, from started to finished."),
    ] = None,
    max_duration: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Ran so long or shorter.")
    ] = None,
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Made from a part of the source only.")
    ] = False,
    sort: Annotated[
        Literal["oldest", "newest"], typer.Option(help="Which comes first, by submission.")
    ] = "oldest",
    after: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="What follows; a full table prints it.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help=f"At most so many; a table has {TABLE_LIMIT} unless told."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help=f"Only these, in this order: {', '.join(options.COLUMNS)}."
        ),
    ] = None,
    input: Annotated[
        bool, typer.Option("--input", help="With what was asked: the text, or a chat's messages.")
    ] = False,
    format: Annotated[
        Format | None,
        typer.Option(help="How to write them; default by the name of the file, or a table."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A file, complete or not there at all."),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="In CSV, every text as it is. Without it, a text that a spreadsheet would run as "
            "a formula (=, +, -, @, tab or line break in front) begins with a '.",
        ),
    ] = False,
) -> None:
    """Find jobs and their results, oldest first.

    JSON lines and Parquet hold every text as it is; a table and what goes to a
    terminal shows control characters as escapes.
    """
    from cli.errors import NotFound
    from cli.output.job_json import FIELDS
    from cli.output.output_file import opened
    from cli.output.writers import (
        DISPENSABLE,
        results_table,
        write_csv,
        write_jsonl,
        write_parquet,
    )
    from cli.stack.ready import require_ready
    from db.reading import Cursor, find_batches, find_results

    format = format or _format_of(output)
    if output is not None:
        _require_place(output, format)
    if format == "parquet" and output is None and sys.stdout.isatty():
        raise typer.BadParameter("Parquet is not for the screen; give -o FILE", param_hint="-o")
    if raw and format != "csv":
        raise typer.BadParameter(
            "is about CSV; other formats are raw as they are", param_hint="--raw"
        )
    if format == "table" and limit is None:
        limit = TABLE_LIMIT
    chosen = options.columns(columns)
    if input and chosen is not None and "input" not in chosen:
        chosen = [*chosen, "input"]
    shortest = options.seconds("--min-duration", min_duration)
    longest = options.seconds("--max-duration", max_duration)
    if shortest is not None and longest is not None and shortest > longest:
        raise typer.BadParameter("is above --max-duration", param_hint="--min-duration")
    if state is None:
        state = "succeeded" if error_code is None else "all"
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
        finish_reason=finish_reason,
        error_code=error_code,
        min_duration=shortest,
        max_duration=longest,
        is_whole=False if incomplete else None,
        sort=sort,
        after=cursor,
        limit=limit,
        with_input=input or "input" in (chosen or ()),
        database=database,
    )
    if format == "table":
        found = list(jobs)
        if not found:
            say("no job matches" if state == "all" else f"no {state} job matches")
            return
        print_table(results_table(found, chosen), () if chosen else DISPENSABLE)
        if len(found) == limit:
            note(f"{plural(limit, 'job')}; what follows: --after {found[-1].cursor}")
        return
    if input and chosen is None:
        place = FIELDS.index("output")
        chosen = [*FIELDS[:place], "input", *FIELDS[place:], "alternatives"]
    with opened(output) as to:
        if format == "parquet":
            write_parquet(jobs, to, chosen)
            return
        utf8 = codecs.getwriter("utf-8")(to)
        if format == "jsonl":
            write_jsonl(jobs, utf8, chosen, out.encoding if output is None else "utf-8")
        elif output is None and sys.stdout.isatty():
            write_csv(jobs, _Shown(utf8), chosen, raw=raw)
        else:
            write_csv(jobs, utf8, chosen, raw=raw)


class _Shown:
    """What goes to a terminal, where control characters are escapes."""

    def __init__(self, to: codecs.StreamWriter) -> None:
        self._to = to

    def write(self, text: str) -> None:
        self._to.write(visible(text, out.encoding))


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
