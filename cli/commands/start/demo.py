"""`tidemill demo`: runs a small night from start to end with the toy models of a checkout."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cli.output.terminal import err, note, one_line, plural, print_table, say, table, warn
from cli.usage import program

if TYPE_CHECKING:
    from cli.stack.local_stack import LocalStack
    from db.reading.batches import FoundBatch
    from db.reading.found_job import FoundJob

DATA_DIR = Path(".tidemill/demo")
NIGHT = Path("examples/nightly.toml")
CONFIG = Path("tidemill.toml")
SHOWN_PER_TASK = 3
COVERAGE_WIDTH = 60


def demo() -> None:
    """Run a night of some hundred jobs from start to end, in a checkout of Tidemill.

    Starts an embedded Valkey, an embedded SQLite and a worker in .tidemill/demo, enqueues
    examples/nightly.toml, waits for it, reads the results from the database, and stops everything.
    """
    from cli.errors import CommandError
    from cli.stack.interrupts import Interrupts
    from cli.stack.local_stack import LocalStack

    for path in (NIGHT, CONFIG):
        if not path.is_file():
            raise CommandError(f"there is no {path} here; run the demo in a checkout of Tidemill")
    stack = LocalStack(DATA_DIR, CONFIG)
    with Interrupts() as interrupts:

        def go_on() -> None:
            interrupts.raise_if_any()
            stack.check()

        try:
            with err.status("starting an embedded Valkey and an embedded SQLite"):
                stack.start_stores()
            say(f"Valkey, SQLite and the worker's log are in {DATA_DIR}")
            os.environ.update(stack.environment)
            batch = _run(stack, go_on)
        except KeyboardInterrupt:
            note("stopping; `make demo` goes on where this ended")
            raise typer.Exit(130) from None
        finally:
            stack.stop(interrupts.several)
    if any(state != "succeeded" for state in batch.states):
        warn(f"not every job succeeded; the worker's log is {stack.log}")
        raise typer.Exit(1)
    say("\nTry next:")
    say(f"  {program()} up                # the same, and it stays")
    say(f'  {program()} submit generate "Once upon a time" --wait    # in another terminal')
    say(f"  TIDEMILL_DATABASE_URL=sqlite:///{DATA_DIR}/tidemill.db \\")
    say(f"    {program()} results")


def _run(stack: "LocalStack", go_on: Callable[[], None]) -> "FoundBatch":
    from cli.ingest.enqueue import Complaints, complete_batch, enqueue
    from cli.ingest.nightly_config import NightlyConfig
    from cli.ingest.row_parsing import RowParser
    from cli.output.progress import is_finished, watch
    from db.reading.results import find_results
    from tasks.configuration import settings

    night = NightlyConfig.load(NIGHT)
    today = night.today()
    run_key = night.run_key_of(today)
    complete = complete_batch(run_key)
    load_seconds: float | None = None
    if complete is None or not is_finished(complete):
        load_seconds = _load_models(stack, go_on)
    ready_at = datetime.now(UTC)
    complaints = Complaints()
    parser = RowParser(
        [] if complete else night.parts_of(NIGHT.resolve().parent, today),
        settings.catalog(),
        run_key,
        complaints.report,
    )
    enqueued = enqueue(
        parser,
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
        batch = watch(batch, check=go_on)
    jobs = list(find_results(batch=batch.id, state=None, database=stack.database))
    _print_examples(jobs)
    _print_documents(jobs)
    runs = list(_runs(jobs, ready_at))
    _print_totals(jobs, runs)
    _print_summary(runs, load_seconds)
    return batch


@dataclass(frozen=True, slots=True)
class JobRun:
    """The times of a job that ran: when it could start, started and ended."""

    job: "FoundJob"
    waits_since: datetime
    started_at: datetime
    finished_at: datetime

    @property
    def wait_seconds(self) -> float:
        return max((self.started_at - self.waits_since).total_seconds(), 0.0)

    @property
    def run_seconds(self) -> float:
        return (self.finished_at - self.started_at).total_seconds()


def _runs(jobs: Sequence["FoundJob"], ready_at: datetime) -> Iterator[JobRun]:
    """The runs of the jobs. ready_at: when the models were loaded, if jobs had waited for that"""
    for job in jobs:
        if job.started_at is not None and job.finished_at is not None:
            was_left = job.created_at < ready_at <= job.finished_at
            yield JobRun(
                job, ready_at if was_left else job.created_at, job.started_at, job.finished_at
            )


def _load_models(stack: "LocalStack", go_on: Callable[[], None]) -> float:
    """Start the worker and wait until it takes jobs; returns the seconds.

    This comes before any job is submitted, so that no job's waiting time includes loading.
    """
    from tasks.configuration import settings

    names = ", ".join(settings.catalog().models)
    started = time.monotonic()
    if not err.is_terminal:
        note(f"loading {names}")
    with err.status(f"loading {names}"):
        stack.start_worker()
        stack.wait_for_worker(go_on)
    seconds = time.monotonic() - started
    say(f"loaded {names} in {seconds:,.1f} s")
    return seconds


def _print_examples(jobs: Sequence["FoundJob"]) -> None:
    listing = table("task", "custom id", "output", title="\nRead back from the database")
    for task in dict.fromkeys(job.task for job in jobs):
        for job in [job for job in jobs if job.task == task][:SHOWN_PER_TASK]:
            answer = job.output if job.error is None else f"{job.error.code}: {job.error.message}"
            listing.add_row(task, job.custom_id or "", one_line(answer or str(job.state), 100))
        listing.add_section()
    print_table(listing)


def _print_documents(jobs: Sequence["FoundJob"]) -> None:
    """Print the coverage of texts that came as single files."""
    from cli.output.coverage import coverage_lines
    from db.reading.job_details import find_details
    from tasks.configuration import settings

    for job in jobs:
        if Path(job.custom_id or "").suffix != ".md":
            continue
        details = find_details(job.id, database=settings.database())
        assert details is not None
        document = (details.provenance or {}).get("document")
        if details.coverage is not None:
            say(f"\n{job.custom_id}, {job.task}: read")
            for line in coverage_lines(details.coverage, COVERAGE_WIDTH):
                say(f"  {line}")
        elif document is not None:
            say(
                f"\n{job.custom_id}, {job.task}: {document['num_translated']:,} of "
                f"{document['num_sentences']:,} sentences translated, its layout kept"
            )


def _print_totals(jobs: Sequence["FoundJob"], runs: Sequence[JobRun]) -> None:
    listing = table("task", "jobs", "failed", "tokens", "tokens/s", "wait p50/p95", "run p50/p95")
    for column in listing.columns[1:]:
        column.justify = "right"
    for task in [*dict.fromkeys(job.task for job in jobs), ""]:
        of_task = [run for run in runs if run.job.task == task or not task]
        listing.add_row(
            task or "all",
            f"{sum(job.task == task or not task for job in jobs):,}",
            f"{sum(job.state == 'failed' and (job.task == task or not task) for job in jobs):,}",
            f"{_num_tokens(of_task):,}",
            _rate(_num_tokens(of_task), _busy_seconds(of_task)),
            _median_and_tail([run.wait_seconds for run in of_task]),
            _median_and_tail([run.run_seconds for run in of_task]),
        )
    say("")
    print_table(listing)


def _print_summary(runs: Sequence[JobRun], load_seconds: float | None) -> None:
    """Print the work apart from the loading time: models load once for any number of jobs."""
    seconds, num_jobs = _busy_seconds(runs), plural(len(runs), "job")
    if load_seconds is not None:
        say(f"\nload  {load_seconds:,.1f} s, once, before the first job was submitted")
    else:
        say("")
    say(
        f"work  {num_jobs} in {seconds:,.1f} s: {_rate(len(runs), seconds)} jobs/s, "
        f"{_rate(_num_tokens(runs), seconds)} tokens/s"
    )
    say("wait  of a job, for its turn among all the others; run: beside others, in one model")


def _num_tokens(runs: Iterable[JobRun]) -> int:
    return sum(run.job.completion_tokens or 0 for run in runs)


def _busy_seconds(runs: Sequence[JobRun]) -> float:
    """Seconds from the moment the first job could run until the last was finished."""
    if not runs:
        return 0.0
    first, last = min(run.waits_since for run in runs), max(run.finished_at for run in runs)
    return (last - first).total_seconds()


def _rate(number: int, seconds: float) -> str:
    return f"{number / seconds:,.0f}" if seconds > 0 else "-"


def _median_and_tail(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    middle, tail = (
        ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.5, 0.95)
    )
    return f"{middle:,.2f}/{tail:,.2f} s"
