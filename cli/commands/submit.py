"""`tidemill submit`: one text, or a file or folder of them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.output.terminal import inert, note, out, plural, say, warn, write_json

if TYPE_CHECKING:
    from tasks.contract import Contract


def submit(
    task: Annotated[options.TaskName, typer.Argument(metavar="TASK", help="The kind of work.")],
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT",
            help="One text; `-` reads it from standard input. Or a file or folder.",
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            help="A .jsonl, .csv, .tsv or .parquet file, a row each job and a column each field "
            "of it; a folder of text files; `-` for JSON lines on standard input."
        ),
    ] = None,
    run_key: Annotated[
        str | None, typer.Option(help="Makes a second submit of the same file harmless.")
    ] = None,
    batch: Annotated[str | None, typer.Option(help="The name of the batch.")] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A field for rows that do not have it themselves."),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=COLUMN",
            help="The column that holds a field; columns of no use are then left out.",
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="To find the results by.")
    ] = None,
    source_language: Annotated[str | None, typer.Option(help="For translate: from.")] = None,
    target_language: Annotated[str | None, typer.Option(help="For translate: into.")] = None,
    model: Annotated[str | None, typer.Option(help="An alias in tidemill.toml.")] = None,
    lane: Annotated[
        options.LaneName | None,
        typer.Option(help="Default: interactive for one text, bulk for a file."),
    ] = None,
    priority: Annotated[int | None, typer.Option(help="Higher goes first in its lane.")] = None,
    tenant: Annotated[str | None, typer.Option(help="For whom.")] = None,
    custom_id: Annotated[str | None, typer.Option(help="Your own id of the one text.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Submitting again under it finds the first job.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is finished.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Enqueue nothing if a single row is bad.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Enqueue one text, or a file or folder of them.

    A bad row is reported with its number and the rest goes through. The exit
    status is 1 if a row was bad or, with --wait, if a job did not succeed.
    """
    from cli.ingest import looks_like_source

    if text is not None and file is not None:
        raise typer.BadParameter("give a text or a --file, not both", param_hint="TEXT")
    if text is not None and looks_like_source(text):
        text, file = None, text
    defaults = options.params(param or ())
    for name, value in (
        ("source_language", source_language),
        ("target_language", target_language),
        ("model", model),
        ("lane", lane),
        ("priority", priority),
        ("tenant", tenant),
        ("custom_id", custom_id),
        ("idempotency_key", idempotency_key),
    ):
        if value is not None:
            defaults[name] = value
    found_by = options.pairs("--metadata", metadata or ())
    if found_by:
        defaults["metadata"] = found_by
    if file is not None:
        for name in ("custom_id", "idempotency_key"):
            if name in defaults:
                raise typer.BadParameter(
                    "belongs to one job; in a file it is a column",
                    param_hint=f"--{name.replace('_', '-')}",
                )
        columns = options.pairs("--field", field or ())
        _submit_file(task, file, defaults, columns, batch, run_key, wait, strict, json)
        return
    if field:
        raise typer.BadParameter("is about the columns of a --file", param_hint="--field")
    if text is None:
        raise typer.BadParameter("give a text, `-`, or a --file", param_hint="TEXT")
    if text == "-":
        # Bytes that are no UTF-8 become lone surrogates, which the contract names.
        text = sys.stdin.buffer.read().decode(errors="surrogateescape")
    _submit_text(task, text, defaults, batch, run_key, wait, json)


def _submit_text(
    task: str,
    text: str,
    defaults: dict[str, Any],
    batch: str | None,
    run_key: str | None,
    wait: bool,
    json: bool,
) -> None:
    from cli.ingest.row_parsing import CONTRACTS
    from cli.stack.ready import require_ready

    work = {"messages": [{"role": "user", "content": text}]} if task == "chat" else {"text": text}
    contract = CONTRACTS[task].parse({**defaults, **work})
    require_ready()
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
    _say_if_nobody_works()
    try:
        found = job.wait()
    except KeyboardInterrupt:
        note(f"no longer waiting; `tidemill show {job.id}` has the result when it is there")
        raise typer.Exit(130) from None
    if json:
        write_json(record(found))
    elif found.state is JobState.SUCCEEDED:
        for answer in (found.output or "", *found.alternatives):
            out.print(inert(answer), soft_wrap=True)
    if found.state is not JobState.SUCCEEDED:
        why = f": {found.error.message} ({found.error.code})" if found.error else ""
        warn(f"the job is {found.state}{why}")
        raise typer.Exit(1)


def _submit_as_batch(
    contract: "Contract", batch: str | None, run_key: str | None, wait: bool, json: bool
) -> None:
    from cli.ingest.enqueue import Enqueued, complete_batch
    from cli.ingest.row_parsing import route
    from db.reading import find_batches
    from tasks import settings
    from tasks.submit import submit_batch

    route(settings.catalog(), contract)
    known = complete_batch(run_key)
    submitted = submit_batch(
        [contract], name=batch or run_key or "", run_key=run_key, tenant=contract.tenant
    )
    [kept] = find_batches(submitted.id, database=settings.database())
    enqueued = Enqueued(
        batch=kept,
        num_new=submitted.num_new,
        num_known=submitted.num_known,
        num_bad=0,
        was_complete=known is not None,
    )
    finish(enqueued, wait, json)


def _submit_file(
    task: str,
    file: str,
    defaults: dict[str, Any],
    columns: dict[str, str],
    batch: str | None,
    run_key: str | None,
    wait: bool,
    strict: bool,
    json: bool,
) -> None:
    from datetime import datetime

    from cli.ingest import open_source
    from cli.ingest.enqueue import Complaints, enqueue
    from cli.ingest.row_parsing import CONTRACTS, Intake, Part
    from cli.stack.ready import require_ready
    from tasks import settings

    if file == "-" and strict:
        raise typer.BadParameter(
            "standard input can be read only once, and --strict reads twice; save it to a file",
            param_hint="--strict",
        )
    catalog = settings.catalog()
    part = Part(
        source=open_source(Path(file)),
        contract=CONTRACTS[task],
        defaults=defaults,
        columns=columns,
    )
    part.check_defaults(catalog)
    require_ready()
    stem = "stdin" if file == "-" else Path(file).resolve().stem
    complaints = Complaints()
    intake = Intake([part], catalog, run_key, complaints.report)
    enqueued = enqueue(
        intake,
        complaints,
        name=batch or run_key or f"{stem}-{datetime.now():%Y-%m-%d-%H%M%S}",
        run_key=run_key,
        tenant=defaults.get("tenant", "default"),
        metadata=defaults.get("metadata"),
        strict=strict,
    )
    if enqueued.batch is None and not enqueued.num_bad:
        warn(f"{part.source.name} has no rows; nothing was enqueued")
        raise typer.Exit(1)
    finish(enqueued, wait, json)


def finish(enqueued: Any, wait: bool, json: bool) -> None:
    """Say what was enqueued, wait for it if asked to, and end with the status that it earned."""
    from cli.output.progress import states_in_words, watch
    from db.states import JobState

    summary = enqueued.as_json
    if not json:
        say(enqueued.sentence)
    all_well = enqueued.num_bad == 0
    if enqueued.batch is not None and enqueued.num_bad and enqueued.batch.run_key:
        note(
            f"the run key {enqueued.batch.run_key} is used up; "
            "submit the rows that were left out, mended, under another"
        )
    if enqueued.num_known and not enqueued.was_complete:
        note(
            f"{plural(enqueued.num_known, 'row')} had a key that was used before: enqueued by an "
            "earlier start, or their custom id comes twice"
        )
    batch = enqueued.batch
    if wait and batch is not None:
        _say_if_nobody_works()
        try:
            batch = watch(batch)
        except KeyboardInterrupt:
            note(f"no longer waiting; `tidemill watch {batch.name}` goes on")
            raise typer.Exit(130) from None
        summary["states"] = {state.value: num for state, num in batch.states.items()}
        if not json:
            say(f"{batch.name}: {states_in_words(batch)}")
        all_well &= batch.states.get(JobState.SUCCEEDED, 0) == batch.num_jobs
    elif batch is not None and not json:
        note(f"`tidemill watch {batch.name}` shows how it goes")
    if json:
        write_json(summary)
    if not all_well:
        raise typer.Exit(1)


def _say_if_nobody_works() -> None:
    from db import queries
    from tasks import settings

    with settings.database().read() as session:
        if session.scalars(queries.live_workers()).first() is None:
            note("no worker is running; start one with `tidemill worker`")
