"""`tidemill demo`: the whole road once, with the toy models of a checkout."""

import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cli.output.terminal import err, note, one_line, print_table, say, table, warn

if TYPE_CHECKING:
    from cli.stack.local_stack import Mill
    from db.reading import FoundBatch, FoundJob

DATA_DIR = Path(".tidemill/demo")
NIGHT = Path("examples/nightly.toml")
CONFIG = Path("tidemill.toml")
SHOWN_PER_TASK = 3


def demo() -> None:
    """Run a night of some hundred jobs from start to end, in a checkout of Tidemill.

    Starts an embedded Valkey, an embedded SQLite and a worker in
    .tidemill/demo, enqueues examples/nightly.toml, waits for it, reads the
    results from the database, and stops everything.
    """
    from cli.errors import CommandError
    from cli.stack.interrupts import Interrupts
    from cli.stack.local_stack import Mill

    for path in (NIGHT, CONFIG):
        if not path.is_file():
            raise CommandError(f"there is no {path} here; run the demo in a checkout of Tidemill")
    mill = Mill(DATA_DIR, CONFIG)
    with Interrupts() as interrupts:

        def go_on() -> None:
            interrupts.raise_if_any()
            mill.check()

        try:
            with err.status("starting an embedded Valkey and an embedded SQLite"):
                mill.start_stores()
            say(f"Valkey, SQLite and the worker's log are in {DATA_DIR}")
            os.environ.update(mill.environment)
            batch = _run(mill, go_on)
        except KeyboardInterrupt:
            note("stopping; `make demo` goes on where this ended")
            raise typer.Exit(130) from None
        finally:
            mill.stop(interrupts.several)
    if any(state != "succeeded" for state in batch.states):
        warn(f"not every job succeeded; the worker's log is {mill.log}")
        raise typer.Exit(1)
    say("\nTry next:")
    say("  .venv/bin/tidemill up                # the same, and it stays")
    say('  .venv/bin/tidemill submit generate "Once there was" --wait    # in another terminal')
    say(f"  TIDEMILL_DATABASE_URL=sqlite:///{DATA_DIR}/tidemill.db .venv/bin/tidemill results")


def _run(mill: "Mill", go_on: Callable[[], None]) -> "FoundBatch":
    from cli.ingest.enqueue import Complaints, complete_batch, enqueue
    from cli.ingest.nightly_config import Night
    from cli.ingest.row_parsing import Intake
    from cli.output.progress import is_finished, watch
    from db.reading import find_results
    from tasks import settings

    night = Night.load(NIGHT)
    today = night.today()
    run_key = night.run_key_of(today)
    known = complete_batch(run_key)
    if known is None or not is_finished(known):
        mill.start_worker()  # it loads its models while the jobs are enqueued
    complaints = Complaints()
    intake = Intake(
        [] if known else night.parts_of(NIGHT.resolve().parent, today),
        settings.catalog(),
        run_key,
        complaints.report,
    )
    enqueued = enqueue(
        intake,
        complaints,
        name=night.batch_of(today),
        run_key=run_key,
        tenant=night.tenant,
        metadata=night.metadata_of(today),
    )
    say(enqueued.sentence)
    batch = enqueued.batch
    assert batch is not None, "the demo's own examples are empty"
    if is_finished(batch):
        say("every job of it is finished, so no worker was started")
    else:
        with err.status("loading the models"):
            mill.wait_for_worker(go_on)
        batch = watch(batch, check=go_on)
    jobs = list(find_results(batch=batch.id, state=None, database=mill.database))
    _print_examples(jobs)
    _print_totals(jobs)
    return batch


def _print_examples(jobs: Sequence["FoundJob"]) -> None:
    made = table("task", "custom id", "output", title="\nRead back from the database")
    for task in dict.fromkeys(job.task for job in jobs):
        for job in [job for job in jobs if job.task == task][:SHOWN_PER_TASK]:
            answer = job.output if job.error is None else f"{job.error.code}: {job.error.message}"
            made.add_row(task, job.custom_id or "", one_line(answer or str(job.state), 100))
        made.add_section()
    print_table(made)


def _print_totals(jobs: Sequence["FoundJob"]) -> None:
    done = [job for job in jobs if job.started_at is not None and job.finished_at is not None]
    made = table("task", "jobs", "failed", "tokens", "tokens/s", "wait p50/p95", "run p50/p95")
    for column in made.columns[1:]:
        column.justify = "right"
    for task in [*dict.fromkeys(job.task for job in jobs), ""]:
        of_task = [job for job in done if job.task == task or not task]
        made.add_row(
            task or "all",
            f"{sum(job.task == task or not task for job in jobs):,}",
            f"{sum(job.state == 'failed' and (job.task == task or not task) for job in jobs):,}",
            f"{sum(job.completion_tokens or 0 for job in of_task):,}",
            _tokens_per_second(of_task),
            _median_and_tail([_seconds(job.created_at, job.started_at) for job in of_task]),
            _median_and_tail([_seconds(job.started_at, job.finished_at) for job in of_task]),
        )
    say("")
    print_table(made)


def _tokens_per_second(jobs: Sequence["FoundJob"]) -> str:
    starts = [job.started_at for job in jobs if job.started_at]
    ends = [job.finished_at for job in jobs if job.finished_at]
    if not starts or not ends:
        return "-"
    seconds = (max(ends) - min(starts)).total_seconds()
    tokens = sum(job.completion_tokens or 0 for job in jobs)
    return f"{tokens / seconds:,.0f}" if seconds else "-"


def _seconds(start: datetime | None, end: datetime | None) -> float:
    assert start is not None
    assert end is not None
    return (end - start).total_seconds()


def _median_and_tail(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    middle, tail = (
        ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.5, 0.95)
    )
    return f"{middle:,.2f}/{tail:,.2f} s"
