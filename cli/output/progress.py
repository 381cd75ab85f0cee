"""Progress bars for enqueuing and for a running batch; plain lines without a terminal."""

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from cli.output.batch_tokens import BatchTokens
from cli.output.escaping import visible
from cli.output.terminal import Screen, err, one_line, plural
from db.reading.batches import FoundBatch, find_batches, seconds_taken
from db.states import FINISHED, JobState
from tasks.configuration import settings

POLL_SECONDS = 0.25
PLAIN_SECONDS = 5.0
NARROW, WIDE = 60, 110  # columns: below the one only numbers are shown, from the other on all
ABANDONED_SECONDS = 30.0  # an open batch that neither grows nor has anything to do
STYLES = {
    JobState.QUEUED: "dim",
    JobState.RUNNING: "cyan",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "yellow",
    JobState.EXPIRED: "yellow",
}


class RateColumn(TextColumn):
    """The recent rate in tokens per second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} tokens/s")


class EtaColumn(TimeRemainingColumn):
    """The remaining time; at the end, the time that the batch took in all."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        seconds: float | None = task.fields["seconds_taken"]
        if seconds is None:
            return Text("ETA ") + super().render(task)
        return Text("took ") + Text(str(timedelta(seconds=round(seconds))), "progress.remaining")


class EnqueueProgress:
    """A bar over the source, with the number of stored jobs and the rate."""

    def __init__(self, name: str, console: Screen = err) -> None:
        self._started = time.monotonic()
        columns: list[ProgressColumn] = [
            TextColumn("{task.fields[num_jobs]:,} jobs, {task.fields[rate]:,.0f}/s")
        ]
        if console.width >= NARROW:
            columns = [
                SpinnerColumn(console.spinner),
                TextColumn("enqueuing {task.fields[name]}", markup=False),
                BarColumn(),
                *columns,
                TimeRemainingColumn(table_column=Column(no_wrap=True)),
            ]
        self._progress = Progress(
            *columns, console=console, transient=True, disable=not _moves(console)
        )
        self._bar = self._progress.add_task(
            "", total=None, name=_short(name, console), num_jobs=0, rate=0.0
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, num_jobs: int, fraction: float | None) -> None:
        """Update the bar. fraction: of the source, 0 to 1; None if unknown"""
        self._progress.update(
            self._bar,
            total=None if fraction is None else 1.0,
            completed=fraction or 0.0,
            num_jobs=num_jobs,
            rate=num_jobs / max(time.monotonic() - self._started, 1e-9),
        )


def watch(
    batch: FoundBatch,
    *,
    console: Screen = err,
    check: Callable[[], None] = lambda: None,
    grows: bool = True,
) -> FoundBatch:
    """Show a batch until its last job is finished; returns its final state.

    check: called at every update; raises to end the watching
    grows: whether jobs may be added to an open batch meanwhile
    """
    states = _polled_batches(batch, check, grows)
    if _moves(console):
        return _watch_bar(batch, console, states)
    return _watch_lines(batch, console, states)


def _watch_bar(batch: FoundBatch, console: Screen, states: Iterator[FoundBatch]) -> FoundBatch:
    columns: list[ProgressColumn] = [TextColumn("{task.fields[jobs]}")]
    if console.width >= NARROW:
        columns = [
            SpinnerColumn(console.spinner),
            TextColumn("{task.fields[name]}", markup=False),
            BarColumn(),
            *columns,
            RateColumn(),
            EtaColumn(),
            TextColumn("{task.fields[states]}"),
        ]
    shown = list(JobState) if console.width >= WIDE else [JobState.FAILED]
    tokens = BatchTokens(batch.id)

    def fields(now: FoundBatch) -> dict[str, Any]:
        done = tokens.at(now.num_unfinished == 0)
        is_over = is_finished(now) and now.num_jobs > 0
        return {
            "seconds_taken": seconds_taken(now, database=settings.database()) if is_over else None,
            "total": done.total,
            "completed": done.finished,
            "jobs": f"{_num_finished(now):,}/{now.num_jobs:,}",
            "states": _states(now, shown),
        }

    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", name=_short(batch.name, console), **fields(batch))
        now = batch
        for now in states:
            progress.update(bar, **fields(now))
    return now


def _moves(console: Screen) -> bool:
    """Whether the console can rewrite a line."""
    return console.is_terminal and not console.is_dumb_terminal


def _short(name: str, console: Screen) -> str:
    """The name, shortened to leave room for the rest of the line."""
    return one_line(name, max(12, console.width // 5)).plain


def _watch_lines(batch: FoundBatch, console: Screen, states: Iterator[FoundBatch]) -> FoundBatch:
    tokens = BatchTokens(batch.id)
    started, before = time.monotonic(), tokens.at(batch.num_unfinished == 0)
    printed_at: float | None = None
    now = batch
    for now in states:
        at = time.monotonic()
        if not is_finished(now) and printed_at is not None and at - printed_at < PLAIN_SECONDS:
            continue
        printed_at = at
        done = tokens.at(now.num_unfinished == 0)
        rate = max(done.finished - before.finished, 0.0) / max(at - started, 1e-9)
        left = done.total - done.finished
        eta = f", about {left / rate:,.0f} s to go" if rate and left else ""
        console.print(
            f"{visible(now.name, one_line=True)}: {_num_finished(now):,} of "
            f"{plural(now.num_jobs, 'job')} finished ({states_in_words(now)}), "
            f"{rate:,.0f} tokens/s{eta}",
            soft_wrap=True,
        )
    return now


def is_finished(batch: FoundBatch) -> bool:
    """Whether the batch is complete and all its jobs have ended."""
    return batch.closed_at is not None and batch.num_unfinished == 0


def states_in_words(batch: FoundBatch) -> str:
    """The states as `2 queued, 3 succeeded`, in order of a job's life."""
    words = [f"{num:,} {state}" for state in JobState if (num := batch.states.get(state, 0))]
    return ", ".join(words) or "no jobs"


def _polled_batches(
    batch: FoundBatch, check: Callable[[], None], grows: bool
) -> Iterator[FoundBatch]:
    """Yield the batch again and again, for the last time when it is finished."""
    grew, num_jobs = time.monotonic(), batch.num_jobs
    while True:
        yield batch
        if is_finished(batch) or (not grows and batch.num_unfinished == 0):
            return
        now = time.monotonic()
        if batch.num_jobs != num_jobs:
            grew, num_jobs = now, batch.num_jobs
        # Whoever enqueued it may have died in the middle.
        if batch.num_unfinished == 0 and now - grew > ABANDONED_SECONDS:
            return
        check()
        time.sleep(POLL_SECONDS)
        [batch] = find_batches(batch.id, database=settings.database())


def _num_finished(batch: FoundBatch) -> int:
    return sum(batch.states.get(state, 0) for state in FINISHED)


def _states(batch: FoundBatch, shown: Iterable[JobState]) -> str:
    parts = [
        f"[{STYLES[state]}]{num:,} {state}[/]"
        for state in shown
        if (num := batch.states.get(state, 0))
    ]
    growing = ["still being enqueued"] if batch.closed_at is None else []
    return " ".join([*parts, *growing])
