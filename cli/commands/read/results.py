"""`tidemill results`: finds jobs with their results, and writes them in four formats."""

import codecs
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli import options
from cli.output.escaping import visible
from cli.output.terminal import err, note, out, plural, print_table, say, warn

TABLE_LIMIT = 50
MAX_LISTED = 50  # names of files, of one kind

Format = Literal["table", "jsonl", "csv", "parquet"]


def results(
    context: typer.Context,
    task: Annotated[options.TaskName | None, typer.Option(help="Only this task.")] = None,
    batch: Annotated[str | None, typer.Option(help="Only this batch: name, run key or id.")] = None,
    state: Annotated[
        options.StateName | None,
        typer.Option(
            help="`all` for every state; default succeeded, with --error-code every state."
        ),
    ] = None,
    language: Annotated[str | None, typer.Option(help="The language of the output.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only jobs with each of these pairs."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Submitted at this time or later, as 2026-01-31."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Submitted before this time.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Text in the output, in any case.")] = None,
    custom_id: Annotated[str | None, typer.Option(help="Your own id.")] = None,
    finish_reason: Annotated[
        options.FinishReason | None,
        typer.Option(help="How the output ended: by itself, or at the limit of its length."),
    ] = None,
    error_code: Annotated[
        str | None, typer.Option(metavar="CODE", help="The error, such as prompt_too_long.")
    ] = None,
    min_duration: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="The shortest run time, from started to finished."),
    ] = None,
    max_duration: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="The longest run time.")
    ] = None,
    incomplete: Annotated[
        bool,
        typer.Option("--incomplete", help="Only results that do not cover their whole source."),
    ] = False,
    suspicious: Annotated[
        bool,
        typer.Option("--suspicious", help="Only results that a guard flagged, with the reasons."),
    ] = False,
    reason: Annotated[
        options.SuspicionName | None, typer.Option(help="Only results flagged for this reason.")
    ] = None,
    signal: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME<VALUE",
            help="A condition, such as 'repetition>0.3' or detected_language=en.",
        ),
    ] = None,
    sort: Annotated[
        Literal["oldest", "newest"], typer.Option(help="The job to list first, by submission.")
    ] = "oldest",
    after: Annotated[
        str | None,
        typer.Option(metavar="CURSOR", help="Continue after this cursor; a full table prints it."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help=f"The most jobs to list; default for a table: {TABLE_LIMIT}."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help=f"Only these, in this order: {', '.join(options.COLUMNS)}."
        ),
    ] = None,
    input: Annotated[
        bool, typer.Option("--input", help="With the input: the text, or a chat's messages.")
    ] = False,
    format: Annotated[
        Format | None,
        typer.Option(help="The output format; default by the name of the file, or a table."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A file, which appears only when it is complete."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON lines, as --format jsonl.")] = False,
    to_folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write a file for each job of a --batch, named like its source; existing ones are "
            "skipped.",
        ),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="In CSV, write every text unchanged. Without it, a text that a spreadsheet would "
            "run as a formula (=, +, -, @, tab or line break in front) begins with a '.",
        ),
    ] = False,
) -> None:
    """Find jobs and their results, oldest first.

    JSON lines and Parquet contain every text unchanged; a table, and any output to a terminal,
    shows control characters as escapes.
    """
    if to_folder is not None:
        _require_batch_alone(context)
        assert batch is not None
        _write_folder(batch, to_folder)
        return
    from cli.errors import NotFound
    from cli.output.files.output_file import opened
    from cli.output.files.writers import (
        DISPENSABLE,
        TABLE_COLUMNS,
        results_table,
        write_csv,
        write_jsonl,
        write_parquet,
    )
    from cli.output.job_json import FIELDS, SIGNAL_FIELDS
    from cli.stack.ready import require_ready
    from db.reading.batches import find_batches
    from db.reading.found_job import Cursor
    from db.reading.results import find_results
    from db.reading.signal_filter import SignalFilter

    if json and format not in (None, "jsonl"):
        raise typer.BadParameter("is --format jsonl; give one", param_hint="--json")
    format = "jsonl" if json else format or _format_of(output)
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
    names = options.columns(columns)
    if input and names is not None and "input" not in names:
        names = [*names, "input"]
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
    try:
        signals = [SignalFilter.parse(each) for each in signal or ()]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--signal") from None
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
        is_suspicious=True if suspicious else None,
        suspicion=reason,
        signals=signals,
        sort=sort,
        after=cursor,
        limit=limit,
        with_input=input or "input" in (names or ()),
        database=database,
    )
    shows_signals = names is None and bool(suspicious or reason or signals)
    if format == "table":
        if shows_signals:
            names = [*TABLE_COLUMNS[:-2], *(["input"] if input else []), "reasons", "output"]
        found = list(jobs)
        if not found:
            say("no job matches" if state == "all" else f"no {state} job matches")
            return
        is_ours = names is None or shows_signals
        print_table(results_table(found, names), DISPENSABLE if is_ours else ())
        if len(found) == limit:
            note(f"{plural(limit, 'job')}; what follows: --after {found[-1].cursor}")
        return
    if input and names is None:
        place = FIELDS.index("output")
        names = [*FIELDS[:place], "input", *FIELDS[place:], "alternatives"]
    if shows_signals:
        names = [*(names or (*FIELDS, "alternatives")), *SIGNAL_FIELDS]
    with opened(output) as to:
        if format == "parquet":
            write_parquet(jobs, to, names)
            return
        utf8 = codecs.getwriter("utf-8")(to)
        if format == "jsonl":
            write_jsonl(jobs, utf8, names, out.encoding if output is None else "utf-8")
        elif output is None and sys.stdout.isatty():
            write_csv(jobs, _Shown(utf8), names, raw=raw)
        else:
            write_csv(jobs, utf8, names, raw=raw)


def _require_batch_alone(context: typer.Context) -> None:
    """Raise a usage error if a folder is requested for anything but one whole batch."""
    if context.params["batch"] is None:
        raise typer.BadParameter(
            "needs the --batch that is to be written", param_hint="--to-folder"
        )
    for name in context.params:
        source = context.get_parameter_source(name)
        is_given = source is not None and source.name == "COMMANDLINE"
        if is_given and name not in ("batch", "to_folder"):
            raise typer.BadParameter(
                "takes a whole --batch and nothing beside it",
                param_hint=f"--to-folder with --{name.replace('_', '-')}",
            )


def _write_folder(batch: str, folder: Path) -> None:
    """Write the outputs of a batch as files; status 1 if a job then has no file."""
    from cli.lookup import found_batch
    from cli.output.files.result_folder import ResultFolder
    from cli.stack.ready import require_ready
    from db.reading.results import find_results

    database = require_ready()
    batch_row = found_batch(batch)
    again = "the same command, run again, goes on"
    with ResultFolder(folder) as to_folder:
        written = to_folder.written
        try:
            with err.status(f"writing to {folder}"):
                to_folder.write(find_results(batch=batch_row.id, state=None, database=database))
        except KeyboardInterrupt:
            note(f"{plural(written.num_written, 'file')} written; {again}")
            raise typer.Exit(130) from None
    num_before = written.num_there_before
    be = "was" if num_before == 1 else "were"
    num_before_text = f", {num_before:,} {be} there before" if num_before else ""
    say(f"wrote {plural(written.num_written, 'file')} to {folder}{num_before_text}")
    if written.partial:
        _list("made from a part of the source only", written.partial)
    if written.renamed:
        _list("under another name, for theirs was taken", written.renamed)
    if written.num_unfinished:
        note(f"{plural(written.num_unfinished, 'job')} not finished; {again}")
    if written.unwritable:
        _list("not written", [f"{name}: {reason}" for name, reason in written.unwritable])
    if written.without_output:
        _list("without a result", [f"{name}: {reason}" for name, reason in written.without_output])
    if written.num_unfinished or written.unwritable or written.without_output:
        raise typer.Exit(1)


def _list(heading: str, lines: list[str]) -> None:
    warn(f"{heading}: {len(lines):,}")
    for line in lines[:MAX_LISTED]:
        note("  " + visible(line, one_line=True))
    if len(lines) > MAX_LISTED:
        note(f"  ... and {len(lines) - MAX_LISTED:,} more")


class _Shown:
    """A stream to a terminal that escapes control characters."""

    def __init__(self, to: codecs.StreamWriter) -> None:
        self._to = to

    def write(self, text: str) -> None:
        self._to.write(visible(text, out.encoding))


def _format_of(output: Path | None) -> Format:
    """The format for the file's suffix."""
    if output is None:
        return "table"
    formats: dict[str, Format] = {".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
    format = formats.get(output.suffix.lower())
    if format is None:
        raise typer.BadParameter(
            f"{output} does not say how; give it a name that ends in {', '.join(formats)}, "
            "or a --format",
            param_hint="-o",
        )
    return format


def _require_place(output: Path, format: Format) -> None:
    """Raise a usage error, before reading, if the output file does not suit the format."""
    if format == "table":
        fault = "a table is for the screen; give another --format"
    elif output.is_dir():
        fault = f"{output} is a folder; name a file in it"
    elif not output.absolute().parent.is_dir():
        fault = f"there is no folder {output.parent}; make it first"
    else:
        return
    raise typer.BadParameter(fault, param_hint="-o")
