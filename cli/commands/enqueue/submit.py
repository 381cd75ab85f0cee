"""`tidemill submit`: one text, or files and folders of them."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.output.terminal import ask, err, inert, note, out, plural, say, warn, write_json

if TYPE_CHECKING:
    from tasks.contracts.contract import Contract

EXAMPLES = (
    "tidemill submit summarize --file reports.jsonl --batch reports",
    'tidemill submit translate "The sea was calm." --source-language en --target-language fr',
    'tidemill submit generate "Once upon a time" --param temperature=0.8',
    'tidemill submit chat "Where is the harbour?" --wait',
)


def submit(
    task: Annotated[options.TaskName, typer.Argument(metavar="TASK", help="The kind of work.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="One text, in quotes; `-` reads it from standard input. Or files and folders, "
            "which make one batch.",
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            help="A .jsonl, .csv, .tsv or .parquet file with a row for each job and a column for "
            "each field; a document (.txt, .md, .html, .srt, .vtt; with the extra `files` .docx, "
            ".pdf, .epub), or a folder of them; `-` for JSON lines on standard input."
        ),
    ] = None,
    as_text: Annotated[
        bool, typer.Option("--text", help="TEXT is the text itself, even if it looks like a path.")
    ] = False,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="Encoding of files that are not in UTF-8 and do not name theirs, such as "
            "windows-1252."
        ),
    ] = None,
    run_key: Annotated[
        str | None, typer.Option(help="Makes a second submit of the same file harmless.")
    ] = None,
    batch: Annotated[str | None, typer.Option(help="The name of the batch.")] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="The value of a field for rows without it."),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=COLUMN",
            help="The column that holds a field; columns without a use are then ignored.",
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Metadata to find the results by.")
    ] = None,
    source_language: Annotated[
        str | None, typer.Option(help="For translate: the source language.")
    ] = None,
    target_language: Annotated[
        str | None, typer.Option(help="For translate: the target language.")
    ] = None,
    glossary: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="For translate: a .csv, .tsv or .json file of terms and their translations; a "
            "term without one stays as it is.",
        ),
    ] = None,
    previous_job_id: Annotated[
        str | None, typer.Option(metavar="JOB", help="For chat: the job to continue.")
    ] = None,
    json_schema: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="For generate and chat: the schema that the answer must match."
        ),
    ] = None,
    json_object: Annotated[
        bool,
        typer.Option("--json-object", help="For generate and chat: answer with a JSON object."),
    ] = False,
    model: Annotated[str | None, typer.Option(help="An alias in tidemill.toml.")] = None,
    lane: Annotated[
        options.LaneName | None,
        typer.Option(help="Default: interactive for one text, bulk for a file."),
    ] = None,
    priority: Annotated[int | None, typer.Option(help="Higher goes first in its lane.")] = None,
    tenant: Annotated[str | None, typer.Option(help="The tenant.")] = None,
    custom_id: Annotated[str | None, typer.Option(help="Your own id for the text.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Submitting again with it returns the first job.")
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compute everything; use no cached answers.")
    ] = False,
    estimate: options.Estimate = False,
    wait: options.Wait = False,
    strict: options.Strict = False,
    errors: options.Errors = None,
    json: options.Json = False,
) -> None:
    """Enqueue one text, or files and folders of them.

    A bad row is reported with its number, and the other rows are enqueued. The exit status is 1 if
    a row was bad or, with --wait, if a job did not succeed.
    """
    text, files = _text_or_files(texts or [], file, as_text)
    defaults = options.params(param or ())
    for name, value in (
        ("source_language", source_language),
        ("target_language", target_language),
        ("previous_job_id", previous_job_id),
        ("json_schema", None if json_schema is None else options.json_file(json_schema)),
        ("json_object", json_object or None),
        ("model", model),
        ("lane", lane),
        ("priority", priority),
        ("tenant", tenant),
        ("custom_id", custom_id),
        ("idempotency_key", idempotency_key),
    ):
        if value is not None:
            defaults[name] = value
    if glossary is not None:
        from cli.ingest.glossary_file import read_glossary_file

        defaults["glossary"] = read_glossary_file(Path(glossary).expanduser(), encoding)
    if no_cache:
        defaults["use_cache"] = False
    found_by = options.pairs("--metadata", metadata or ())
    if found_by:
        defaults["metadata"] = found_by
    if files:
        for name in ("custom_id", "idempotency_key"):
            if name in defaults:
                raise typer.BadParameter(
                    "belongs to one job; in a file it is a column",
                    param_hint=f"--{name.replace('_', '-')}",
                )
        columns = options.pairs("--field", field or ())
        _submit_files(
            *(task, files, encoding, defaults, columns, batch, run_key),
            *(estimate, wait, strict, errors, json),
        )
        return
    if field:
        raise typer.BadParameter("is about the columns of a --file", param_hint="--field")
    if errors is not None:
        raise typer.BadParameter("is about the rows of a --file", param_hint="--errors")
    if text is None:
        raise typer.BadParameter("give a text, `-`, or a --file", param_hint="TEXT")
    if text == "-" and not as_text:
        text = _standard_input(encoding)
    elif encoding is not None and glossary is None:
        raise typer.BadParameter("is about files and standard input", param_hint="--encoding")
    _submit_text(task, text, defaults, batch, run_key, estimate, wait, json)


def _text_or_files(
    texts: list[str], file: str | None, as_text: bool
) -> tuple[str | None, list[str]]:
    """The one text, or else the files and folders; raises SourceUnusable if that is ambiguous."""
    from cli.ingest import looks_like_source
    from cli.ingest.argument import is_source

    if texts and file is not None:
        raise typer.BadParameter("give a text or a --file, not both", param_hint="TEXT")
    if file is not None:
        if as_text:
            raise typer.BadParameter("give --text or --file, not both", param_hint="--text")
        return None, [file]
    if len(texts) > 1 and not as_text and all(map(is_source, texts)):
        return None, texts
    if len(texts) > 1:
        raise typer.BadParameter(
            f"{len(texts)} words; put a text of several words in quotes, and see to it that "
            "files and folders are there",
            param_hint="TEXT",
        )
    if not texts:
        return None, []
    [text] = texts
    if text == "-" or as_text:
        return text, []
    if looks_like_source(text) or _is_meant_as_source(text):
        return None, [text]
    return text, []


def _is_meant_as_source(text: str) -> bool:
    """Whether an argument is a path; if that is ambiguous, asks the user or raises."""
    from cli.errors import SourceUnusable
    from cli.ingest.argument import what_it_looks_like

    looks = what_it_looks_like(text)
    if looks is None:
        return False
    name = inert(text).plain
    exists = Path(text).expanduser().exists()
    if sys.stdin.isatty() and err.is_terminal:
        if exists and ask(f"{name} is {looks}. Submit what is in it?", default=True):
            return True
        missing = "" if exists else f"There is no file or folder {name} here. "
        if ask(f"{missing}Submit these characters, {name}, as the text?"):
            return False
        raise typer.Exit(1)
    instead = f"`--file {name}` submits what is in it; " if exists else ""
    raise SourceUnusable(
        f"{name} looks like {looks}; {instead}`--text {name}` submits it as the text, word for word"
    )


def _standard_input(encoding: str | None) -> str:
    from cli.documents import UnreadableDocument
    from cli.documents.plain import decoded
    from cli.errors import SourceUnusable
    from cli.ingest import codec_named

    otherwise = None if encoding is None else codec_named(encoding)
    try:
        return decoded(sys.stdin.buffer.read(), otherwise=otherwise)
    except UnreadableDocument as error:
        raise SourceUnusable(f"standard input {error.fault}") from None


def _submit_text(
    task: str,
    text: str,
    defaults: dict[str, Any],
    batch: str | None,
    run_key: str | None,
    estimate: bool,
    wait: bool,
    json: bool,
) -> None:
    from cli.stack.ready import require_ready, say_if_nobody_works
    from tasks.contracts.by_task import CONTRACTS

    work = {"messages": [{"role": "user", "content": text}]} if task == "chat" else {"text": text}
    contract = CONTRACTS[task].parse({**defaults, **work})
    database = require_ready()
    if estimate:
        from cli.estimate import estimated, say_estimate
        from tasks.configuration import settings

        say_estimate(estimated(database, settings.catalog(), [contract]), json)
        return
    if batch is not None or run_key is not None:
        _submit_as_batch(contract, batch, run_key, wait, json)
        return

    from cli.output.job_json import record
    from db.states import JobState
    from tasks.submit import submit_contract

    job = submit_contract(contract)
    if not wait:
        if json:
            write_json({"id": str(job.id), "is_new": job.is_new})
        else:
            say(f"{job.id}" + ("" if job.is_new else "  (submitted before)"))
        return
    if not json:
        note(f"{job.id}, waiting; Ctrl-C leaves it running")
    try:
        say_if_nobody_works()
        finished = job.wait()
    except KeyboardInterrupt:
        note(f"no longer waiting; `tidemill show {job.id}` has the result when it is there")
        raise typer.Exit(130) from None
    if json:
        write_json(record(finished))
    elif finished.state is JobState.SUCCEEDED:
        for answer in (finished.output or "", *finished.alternatives):
            out.print(inert(answer), soft_wrap=True)
    if finished.state is not JobState.SUCCEEDED:
        reason = f": {finished.error.message} ({finished.error.code})" if finished.error else ""
        warn(f"the job is {finished.state}{reason}")
        raise typer.Exit(1)


def _submit_as_batch(
    contract: "Contract", batch: str | None, run_key: str | None, wait: bool, json: bool
) -> None:
    from cli.ingest.enqueue import Enqueued, complete_batch
    from cli.ingest.row_parsing import route
    from db.reading.batches import find_batches
    from tasks.configuration import settings
    from tasks.submission.batch import submit_batch

    route(settings.catalog(), contract)
    complete = complete_batch(run_key)
    submitted = submit_batch(
        [contract], name=batch or run_key or "", run_key=run_key, tenant=contract.tenant
    )
    [batch_row] = find_batches(submitted.id, database=settings.database())
    enqueued = Enqueued(
        batch=batch_row,
        num_new=submitted.num_new,
        num_known=submitted.num_known,
        num_bad=0,
        was_complete=complete is not None,
    )
    finish(enqueued, wait, json)


def _submit_files(
    task: str,
    files: list[str],
    encoding: str | None,
    defaults: dict[str, Any],
    columns: dict[str, str],
    batch: str | None,
    run_key: str | None,
    estimate: bool,
    wait: bool,
    strict: bool,
    errors: Path | None,
    json: bool,
) -> None:
    from datetime import datetime

    from cli.ingest import open_sources
    from cli.ingest.enqueue import Complaints, enqueue
    from cli.ingest.row_parsing import RowParser, SourcePart
    from cli.stack.ready import require_ready
    from tasks.configuration import settings
    from tasks.contracts.by_task import CONTRACTS

    if "-" in files and strict:
        raise typer.BadParameter(
            "standard input can be read only once, and --strict reads twice; save it to a file",
            param_hint="--strict",
        )
    catalog = settings.catalog()
    parts = [
        SourcePart(
            source=source,
            contract=CONTRACTS[task],
            defaults=defaults,
            columns=columns,
            tag=str(number) if len(files) > 1 else "",
        )
        for number, source in enumerate(
            open_sources([Path(file).expanduser() for file in files], encoding), start=1
        )
    ]
    parts[0].check_defaults(catalog)
    require_ready()
    stem = "stdin" if files[0] == "-" else Path(files[0]).expanduser().resolve().stem
    complaints = Complaints(errors)
    parser = RowParser(
        parts, catalog, run_key, complaints.report, complaints.keep, one_namespace=len(parts) > 1
    )
    if estimate:
        from cli.estimate import estimate_source

        estimate_source(parser, catalog, complaints, json)
        return
    enqueued = enqueue(
        parser,
        complaints,
        name=batch or run_key or f"{stem}-{datetime.now():%Y-%m-%d-%H%M%S}",
        run_key=run_key,
        tenant=defaults.get("tenant", "default"),
        metadata=defaults.get("metadata"),
        strict=strict,
    )
    finish(enqueued, wait, json)


def finish(enqueued: Any, wait: bool, json: bool, *, is_night: bool = False) -> None:
    """Report the enqueued jobs, wait for them if requested, and exit with the right status.

    is_night: whether it is a nightly configuration, which may say that a source may be empty
    """
    from cli.output.progress import states_in_words, watch
    from cli.stack.ready import say_if_nobody_works
    from db.states import JobState

    summary = enqueued.as_json
    if not json:
        say(enqueued.sentence)
    warn_of_sources(enqueued.empty, enqueued.failures, is_night=is_night)
    all_well = not (enqueued.num_bad or enqueued.empty or enqueued.failures)
    is_open = enqueued.batch is not None and enqueued.batch.closed_at is None
    if is_open:
        note("the batch stays open for what is missing: the same command, run again, adds it")
    if enqueued.batch is not None and enqueued.num_bad and enqueued.batch.run_key and not is_open:
        note(
            f"the run key {enqueued.batch.run_key} is used up; "
            "submit the rows that were left out, mended, under another"
        )
    if enqueued.num_known and not enqueued.was_complete:
        note(
            f"{plural(enqueued.num_known, 'row')} had a key that was used before, by an earlier "
            "start for one, and are not enqueued again"
        )
    batch = enqueued.batch
    if wait and batch is not None:
        say_if_nobody_works()
        try:
            batch = watch(batch, grows=not is_open)
        except KeyboardInterrupt:
            note(f"no longer waiting; `tidemill watch {shlex.quote(batch.name)}` goes on")
            raise typer.Exit(130) from None
        summary["states"] = {state.value: num for state, num in batch.states.items()}
        if not json:
            say(f"{batch.name}: {states_in_words(batch)}")
        all_well &= batch.states.get(JobState.SUCCEEDED, 0) == batch.num_jobs
    elif batch is not None and not json:
        note(f"`tidemill watch {shlex.quote(batch.name)}` shows how it goes")
    if json:
        write_json(summary)
    if not all_well:
        raise typer.Exit(1)


def warn_of_sources(
    empty: Sequence[str], failures: Sequence[str], *, is_night: bool = False
) -> None:
    """Warn of sources that were empty or could not be read."""
    from cli.ingest.formats.suffixes import emptiness_of

    for failure in failures:
        warn(failure)
    for name in empty:
        warn(f"{emptiness_of(name)}; nothing was enqueued from it")
    if empty and is_night:
        note("where a night's source may be empty, say `allow_empty = true` in its configuration")
